"""Several processes profile one corpus as one would, stop and go on together, and end together with one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.profiler.processes import Processes, joined_processes
from specmoe.profiler.routing_profile import RoutingProfile

SCRIPT = Path(__file__).with_name("many_processes.py")


class Runs:
    """What the runs left in their folder, and how each of their processes ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ended(self, name: str) -> dict[int, dict[str, Any]]:
        """By process number, for those that lived."""
        paths = self.folder.glob(f"{name}-[0-9].json")
        return {int(path.stem.rpartition("-")[2]): json.loads(path.read_text()) for path in paths}


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory, texts) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    settings = {"folder": str(folder), "model": str(tiny_model("olmoe").folder), "data": str(data)}
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(SCRIPT), str(folder / "settings.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    return Runs(folder)


@pytest.mark.parametrize("name", ["two", "four"])
def test_the_file_is_that_of_one_process_byte_by_byte(runs, name) -> None:
    assert (runs.folder / name).read_bytes() == (runs.folder / "one").read_bytes()
    profile = RoutingProfile.load(runs.folder / name)
    assert profile.sample is not None
    assert 0 < profile.sample.num_tokens < profile.num_tokens, "the sample must be drawn, not whole"
    assert [end["error"] for end in runs.ended(name).values()] == [None] * len(runs.ended(name))
    assert not list(runs.folder.glob(f"{name}.state*"))


def test_all_processes_may_have_the_profile(runs) -> None:
    one = RoutingProfile.load(runs.folder / "one").fingerprint
    assert [end["fingerprint"] for end in runs.ended("shared").values()] == [one, one]
    assert [runs.ended("two")[process]["fingerprint"] for process in (0, 1)] == [one, None]


def test_when_one_is_killed_all_end_and_one_says_so(runs) -> None:
    ended = runs.ended("death")
    assert sorted(ended) == [0, 1]
    said = [end["error"] for end in ended.values() if end["kind"] == "SpecmoeError"]
    assert len(said) == 1
    assert "another process of this run was ended (killed, or out of memory)" in said[0]
    assert [end["kind"] for end in ended.values()].count("SaidElsewhereError") == 1
    assert not (runs.folder / "death").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("failure", "the second process cannot go on"), ("data", "nowhere.txt does not exist")]
)
def test_when_one_fails_it_says_why_and_the_others_are_silent(runs, name, message) -> None:
    ended = runs.ended(name)
    said = [end["error"] for end in ended.values() if end["kind"] != "SaidElsewhereError"]
    assert len(said) == 1
    assert message in said[0]
    assert all(end["error"] for end in ended.values())
    assert not (runs.folder / name).exists()


def test_stopped_processes_go_on_where_each_was(runs) -> None:
    first = [end["fingerprint"] for end in runs.ended("first").values()]
    assert any(first)
    assert [end["error"] for end in runs.ended("second").values()] == [None, None]
    assert (runs.folder / "half").read_bytes() == (runs.folder / "one").read_bytes()
    others = runs.ended("others")
    assert "left by a run of another number of processes" in "".join(end["error"] for end in others.values())


def test_one_process_alone_starts_no_group() -> None:
    import torch.distributed as dist

    with joined_processes() as processes:
        assert (processes.number, processes.count, processes.local_number) == (0, 1, 0)
        assert processes.gather(5) == [5]
    assert not dist.is_initialized()
    assert Processes().count == 1


def test_what_is_sent_arrives(monkeypatch) -> None:
    """Through a queue in place of a network: dtypes, empty arrays, and more than a block."""
    from specmoe.profiler import processes as module

    queue: list[Any] = []
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)
    monkeypatch.setattr(module.dist, "send_object_list", lambda values, dst, group: queue.append(values[0]))
    monkeypatch.setattr(module.dist, "send", lambda block, dst, group: queue.append(block.clone()))
    monkeypatch.setattr(module.dist, "recv_object_list", lambda into, src, group: into.__setitem__(0, queue.pop(0)))
    monkeypatch.setattr(module.dist, "recv", lambda block, src, group: block.copy_(queue.pop(0)))
    frozen = np.arange(30, dtype=np.int64).reshape(5, 6)
    frozen.setflags(write=False)
    arrays = {"a": frozen, "b": np.zeros((0, 3), dtype=np.float16), "c": np.asfortranarray(np.eye(7, dtype=np.uint8))}
    Processes(number=1, count=2).send(arrays, 0)
    received = Processes(number=0, count=2).receive(1)
    assert not queue
    for name, array in arrays.items():
        assert received[name].dtype == array.dtype
        np.testing.assert_array_equal(received[name], array)
