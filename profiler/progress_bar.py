"""A progress bar over tokens, with tokens per second, for a corpus whose length in tokens is not known beforehand."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specmoe.profiler.request_stream import RequestStream


@contextmanager
def progress_bar(requests: RequestStream, num_characters: int, shown: bool) -> Iterator[Any]:
    """A bar to `update` with tokens done; invisible unless `shown`. num_characters: the corpus's length."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> Any:
            # The length in tokens is not known before the end.
            self.total = requests.expected_tokens(num_characters)
            return super().update(n)

    with Bar(desc="profiling", unit=" tokens", unit_scale=True, disable=not shown, leave=False) as bar:
        yield bar
