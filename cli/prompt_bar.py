"""A progress bar on stderr over prompts that are continued."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def prompt_bar(*, visible: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields what shows how many prompts are done, of how many; nothing is drawn before its first call."""
    from tqdm import tqdm

    with tqdm(desc="generating", unit="prompt", leave=False, delay=1e-9, disable=not visible) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        yield show
