"""Run one process's share of the batches and record them."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from specmoe.profiler.batches import Batch, make_batches
from specmoe.profiler.checkpoint_file import SavedState, StateFile
from specmoe.profiler.experts_interface import RoutingObserver
from specmoe.profiler.forward_pass import check_vocabulary, record_batch, run_batch
from specmoe.profiler.generation import continue_batch
from specmoe.profiler.prepared_run import PreparedRun
from specmoe.profiler.processes import Processes
from specmoe.profiler.recording_thread import RecordingThread
from specmoe.profiler.routing_recorder import RoutingRecorder


@dataclass(frozen=True, kw_only=True)
class ShareDone:
    """seconds: what the share took, in earlier runs too; stopped: it was not all of it."""

    seconds: float
    stopped: bool


def record_share(
    run: PreparedRun,
    recorder: RoutingRecorder,
    processes: Processes,
    state_file: StateFile | None,
    *,
    should_stop: Callable[[], bool],
    on_tokens: Callable[[int], object],
) -> ShareDone:
    """Run every `processes.count`-th batch from this process's first on, and go on from `state_file`'s state.

    The state is saved when it is due, and when `should_stop` says to stop. on_tokens: told of each batch's tokens.
    """
    start = time.monotonic()
    saved = state_file.load() if state_file is not None else None
    if saved is not None:
        recorder.merge(saved.arrays)
        on_tokens(recorder.num_tokens)
        start -= saved.seconds
    num_done = 0 if saved is None else saved.num_batches
    stopped = False
    with RoutingObserver(run.layers.modules) as observer, RecordingThread(recorder) as recording:
        for batch in itertools.islice(_own_batches(run, processes), num_done, None):
            stopped = should_stop()
            if state_file is not None and (stopped or state_file.is_due()):
                recording.wait()
                seconds = time.monotonic() - start
                state_file.save(SavedState(num_batches=num_done, seconds=seconds, arrays=recorder.state()))
            if stopped:
                break
            _run_and_record(run, batch, observer, recording)
            num_done += 1
            on_tokens(len(batch.token_ids))
        recording.wait()
    return ShareDone(seconds=time.monotonic() - start, stopped=stopped)


def _own_batches(run: PreparedRun, processes: Processes) -> Iterator[Batch]:
    batches = make_batches(run.requests, run.batch_tokens, run.requests.max_length)
    return itertools.islice(batches, processes.number, None, processes.count)


def _run_and_record(run: PreparedRun, batch: Batch, observer: RoutingObserver, recording: RecordingThread) -> None:
    check_vocabulary(batch, run.vocab_size)
    if run.options.generate is None:
        run_batch(run.model, batch, run.device)
        requests, num_rows, rows = batch.requests, batch.mask.size, np.flatnonzero(batch.mask)
    else:
        continued = continue_batch(run.model, batch, run.options.generate, run.device)
        requests, num_rows, rows = continued.requests, continued.num_rows, continued.rows
    record_batch(observer.take(num_rows), rows, requests, recording, run.layers.num_logical_experts)
