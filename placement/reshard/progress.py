"""A progress bar in bytes that several threads may advance."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int], None]


@contextmanager
def byte_progress(label: str, total_bytes: int, *, shown: bool) -> Iterator[Report]:
    """Yield a function that adds bytes to a bar on stderr, with speed and remaining time; a no-op unless `shown`."""
    if not shown:
        yield lambda _: None
        return
    from tqdm import tqdm

    lock = threading.Lock()
    with tqdm(total=total_bytes, unit="B", unit_scale=True, desc=label, file=sys.stderr) as bar:

        def report(count: int) -> None:
            with lock:
                bar.update(count)

        yield report
