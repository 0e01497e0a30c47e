"""A progress bar over tokens, with tokens per second, for a corpus whose length in tokens is not known beforehand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from specmoe.profiler.request_stream import RequestStream


@contextmanager
def progress_bar(requests: RequestStream, characters_of_file: Sequence[int], shown: bool) -> Iterator[Any]:
    """A bar to `update` with tokens done; invisible unless `shown`. characters_of_file: the length of each file."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> Any:
            # The length in tokens is not known before the end.
            self.total = requests.expected_tokens(characters_of_file)
            return super().update(n)

    with Bar(desc="profiling", unit=" tokens", unit_scale=True, disable=not shown, leave=False) as bar:
        yield bar
