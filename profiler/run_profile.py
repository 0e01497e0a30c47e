"""Run a model over a corpus, on one process or several, from the start or from where an unfinished run stopped.

Every process forms the same batches and runs every n-th of them, so that any number of processes runs the same passes;
their counts are added up and their samples merged.
"""

from collections.abc import Callable
from dataclasses import dataclass

from specmoe.errors import SpecmoeError
from specmoe.profiler.checkpoint_file import StateFile, refuse_foreign_states
from specmoe.profiler.output_file import OutputFile
from specmoe.profiler.prepared_run import PreparedRun
from specmoe.profiler.processes import Processes
from specmoe.profiler.progress_bar import progress_bar
from specmoe.profiler.record_share import record_share
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_recorder import RoutingRecorder


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class ProfileRun:
    """The profile (None but in process 0, unless all share it) and the seconds that the model was run."""

    profile: RoutingProfile | None
    num_processes: int
    seconds: float


def claim_output(output: OutputFile, processes: Processes) -> None:
    """Raise `OutputError` where a profile or the state of an unfinished run must stay; drop states that need not.

    Collective, and cheap: to be called before a model is loaded.
    """
    if processes.number == 0:
        output.refuse_existing()
    if output.resume:
        refuse_foreign_states(output, processes)
        return
    for path in output.left_states():
        path.unlink(missing_ok=True)
    processes.gather(0)  # none saves a state before all have looked


def run_profile(
    run: PreparedRun,
    processes: Processes,
    *,
    output: OutputFile | None = None,
    should_stop: Callable[[], bool] = _never,
    share: bool = False,
    progress: bool = False,
) -> ProfileRun:
    """The profile of a prepared run; collective among `processes`.

    output: where process 0 saves the profile, claimed before. should_stop: asked between batches; where it says so, the
    profile holds what was seen until then. share: give the profile to all processes.
    """
    recorder = run.new_recorder()
    state_file = None if output is None else StateFile(output, processes, run.job())
    with progress_bar(run.requests, run.corpus_size.characters_of_file, progress and processes.number == 0) as bar:
        done = record_share(
            run,
            recorder,
            processes,
            state_file,
            should_stop=should_stop,
            on_tokens=lambda number: bar.update(number * processes.count),
        )
    stopped = any(processes.gather(int(done.stopped)))
    merged = _merged(run, recorder, processes, share=share)
    profile = None if merged is None else _finished(run, merged, stopped=stopped)
    if output is not None:
        _save(output, profile, processes)
        if state_file is not None and not stopped:
            state_file.remove()
    return ProfileRun(profile=profile, num_processes=processes.count, seconds=done.seconds)


def _finished(run: PreparedRun, recorder: RoutingRecorder, *, stopped: bool) -> RoutingProfile:
    if stopped and not recorder.num_tokens:
        raise SpecmoeError("interrupted before the first batch was through; no profile was written")
    return run.finish(recorder, stopped=stopped)


def _merged(
    run: PreparedRun, recorder: RoutingRecorder, processes: Processes, *, share: bool
) -> RoutingRecorder | None:
    """What all processes recorded, in process 0 or, with `share`, in all; elsewhere None."""
    others = range(1, processes.count)
    if processes.number == 0:
        for number in others:
            recorder.merge(processes.receive(number))
        for number in others if share else ():
            processes.send(recorder.state(), number)
        return recorder
    processes.send(recorder.state(), 0)
    if not share:
        return None
    merged = run.new_recorder()
    merged.merge(processes.receive(0))
    return merged


def _save(output: OutputFile, profile: RoutingProfile | None, processes: Processes) -> None:
    """Save in process 0; returns once it is saved, so that no state is removed before."""
    if processes.number == 0:
        assert profile is not None, "process 0 has the profile"
        profile.save(output.path, force=output.may_replace())
    processes.gather(0)
