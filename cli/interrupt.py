"""Ctrl-C, once, as a wish to stop with the best so far; twice, as the interrupt that it is."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the next one interrupts as usual.

    It stays unset outside the main thread, and where Ctrl-C is ignored, as in a script's background jobs.
    """
    event = threading.Event()
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual == signal.SIG_IGN:
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, usual)
