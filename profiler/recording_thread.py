"""Record a batch in a thread of its own while the next one runs: a GPU need not wait for the counting."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routing_recorder import RoutingRecorder

# Waits for a batch's expert ids and gate weights, as `RoutingRecorder.add` takes them; called in the thread.
Arriving = Callable[[], tuple[Array, Array]]


class RecordingThread:
    """Adds to `recorder` in the order of `add`, one batch behind at most, which bounds the memory.

    The counting is compiled and lets go of the interpreter, so that the model's launches go on beside it. While this is
    entered the recorder may be read after `wait` alone.
    """

    def __init__(self, recorder: RoutingRecorder) -> None:
        self._recorder = recorder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording")
        self._last: Future[None] | None = None

    def __enter__(self) -> "RecordingThread":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def offered(self, requests: Sequence[Request]) -> NDArray[np.bool_]:
        """bool [number of requests]: which may come into the sample; by the time they are added it may be fewer."""
        return self._recorder.wanted(requests)

    def add(self, requests: Sequence[Request], arriving: Arriving, offered: NDArray[np.bool_]) -> None:
        """As `RoutingRecorder.add`, with what `arriving` returns; raises here what went wrong with the batch before."""
        self.wait()
        self._last = self._thread.submit(self._record, requests, arriving, offered)

    def wait(self) -> None:
        """Return once all that was added is recorded; raises what went wrong with it."""
        if self._last is not None:
            self._last.result()
            self._last = None

    def _record(self, requests: Sequence[Request], arriving: Arriving, offered: NDArray[np.bool_]) -> None:
        self._recorder.add(requests, *arriving(), offered)
