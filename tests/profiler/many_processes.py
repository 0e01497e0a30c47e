"""Run by `test_processes`: fork processes that profile together and say how they ended.

Arguments: a JSON file {"folder", "model", "data"}. Process P of run NAME writes `FOLDER/NAME-P.json`: {"error": its
message or null, "kind": the error's class, "fingerprint": of the profile it was given}.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

from specmoe.errors import ArtifactError, SpecmoeError
from specmoe.profiler import record_share
from specmoe.profiler.output_file import OutputFile
from specmoe.profiler.prepared_run import prepare_run
from specmoe.profiler.processes import Processes, joined_processes
from specmoe.profiler.profile_options import ProfileOptions
from specmoe.profiler.run_profile import ProfileRun, claim_output, run_profile

OPTIONS = ProfileOptions(batch_tokens=64, sample_tokens=150, generate=3, max_length=30)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    # Import the model's class once, here, and not in each of the forked processes.
    config = transformers.AutoConfig.from_pretrained(settings["model"])
    _ = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    runs: dict[str, tuple[int, Callable[[Processes, dict[str, Any]], ProfileRun]]] = {
        "one": (1, saved),
        "two": (2, saved),
        "four": (4, saved),
        "shared": (2, shared),
        "death": (3, death),
        "failure": (2, failure),
        "data": (2, missing_data),
        "first": (2, stopped),
        "others": (3, resumed),
        "second": (2, resumed),
    }
    for name, (world_size, check) in runs.items():
        context = multiprocessing.get_context("fork")
        arguments = [(name, process, world_size, check, settings) for process in range(world_size)]
        children = [context.Process(target=run, args=args) for args in arguments]
        for child in children:
            child.start()
        for child in children:
            child.join()


def run(name: str, process: int, world_size: int, check: Callable[..., ProfileRun], settings: dict[str, Any]) -> None:
    folder = Path(settings["folder"])
    store = dist.FileStore(str(folder / f"{name}-store"), world_size)
    dist.init_process_group("gloo", store=store, rank=process, world_size=world_size, timeout=timedelta(seconds=60))
    found = attempt(name, check, settings)
    if name == "data":
        found = attempt(name, check, settings)
    (folder / f"{name}-{process}.json").write_text(json.dumps(found))
    # Without the clean-up of the group, which may be broken on purpose.
    os._exit(0)


def attempt(name: str, check: Callable[..., ProfileRun], settings: dict[str, Any]) -> dict[str, Any]:
    try:
        with joined_processes() as processes:
            profile = check(processes, settings | {"name": name}).profile
    except SpecmoeError as error:
        return {"error": str(error), "kind": type(error).__name__, "fingerprint": None}
    return {"error": None, "kind": None, "fingerprint": None if profile is None else profile.fingerprint}


def profiled(
    processes: Processes, settings: dict[str, Any], output: OutputFile | None = None, **options: Any
) -> ProfileRun:
    if output is not None:
        claim_output(output, processes)
    prepared = prepare_run(settings["model"], [Path(settings["data"])], OPTIONS, processes)
    return run_profile(prepared, processes, output=output, **options)


def saved(processes: Processes, settings: dict[str, Any], **options: Any) -> ProfileRun:
    return profiled(processes, settings, OutputFile(path=Path(settings["folder"]) / settings["name"]), **options)


def shared(processes: Processes, settings: dict[str, Any]) -> ProfileRun:
    return profiled(processes, settings, share=True)


def missing_data(processes: Processes, settings: dict[str, Any]) -> ProfileRun:
    """Tried twice: the second time, too, one of them says why."""
    return saved(processes, settings | {"data": "nowhere.txt"})


def death(processes: Processes, settings: dict[str, Any]) -> ProfileRun:
    """The last process is killed after its first batch."""
    asked = []

    def should_stop() -> bool:
        asked.append(None)
        if processes.number == 2 and len(asked) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    return saved(processes, settings, should_stop=should_stop)


def failure(processes: Processes, settings: dict[str, Any]) -> ProfileRun:
    """The second process finds something wrong with its first batch."""

    def fail(*_: Any) -> None:
        raise ArtifactError("the second process cannot go on")

    if processes.number == 1:
        record_share.record_batch = fail
    return saved(processes, settings)


def stopped(processes: Processes, settings: dict[str, Any]) -> ProfileRun:
    """Every process is told to stop after as many batches as its number, plus one."""
    asked = []

    def should_stop() -> bool:
        asked.append(None)
        return len(asked) > processes.number + 1

    return saved(processes, settings | {"name": "half"}, should_stop=should_stop)


def resumed(processes: Processes, settings: dict[str, Any]) -> ProfileRun:
    return profiled(processes, settings, OutputFile(path=Path(settings["folder"]) / "half", resume=True))


if __name__ == "__main__":
    main()
