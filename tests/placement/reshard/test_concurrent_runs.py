"""Two runs for one output: the second is refused at every moment of the first, and neither deletes what is finished."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specmoe import atomic_folder
from specmoe.errors import OutputError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard import build, staging
from specmoe.placement.reshard.compilation import plan_compilation
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.manifest import CompiledManifest
from specmoe.placement.reshard.output_lock import output_lock
from specmoe.placement.reshard.staging import Staging
from specmoe.placement.reshard.verify_files import verify_files

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
BUSY = "another specmoe reshard is writing"


@pytest.fixture
def plan(permutation_plan: Callable[..., PlacementPlan]) -> PlacementPlan:
    return permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))


@pytest.fixture
def source(tmp_path: Path, make_checkpoint: Callable[..., Path], recipes: dict[str, Any]) -> Path:
    return make_checkpoint(tmp_path / "m", recipes["mixtral"])


@pytest.fixture
def old_output(tmp_path: Path, source: Path, permutation_plan: Callable[..., PlacementPlan]) -> Path:
    """A checkpoint, compiled by another plan, in the place of the output."""
    reshard(source, permutation_plan([ROWS[1], ROWS[0]], ep_size=2, layer_ids=(1, 2)), tmp_path / "out")
    return tmp_path / "out"


def meet_another_run(out: Path, key: str, refused: list[str]) -> None:
    """Be the second run, which must not come in."""
    with pytest.raises(OutputError, match=BUSY), Staging(out, key, force=True):
        pass
    refused.append(key)


def test_a_second_run_is_refused_and_harms_nothing(tmp_path, source, plan) -> None:
    out = tmp_path / "out"
    with Staging(out, plan_compilation(source, plan, "ranks").key):
        with pytest.raises(OutputError, match=BUSY):
            reshard(source, plan, out)
        assert (tmp_path / "out.partial").is_dir()
    reshard(source, plan, out)


@pytest.mark.parametrize("step", ["put_in_place", "remove_folder", "sync"])
@pytest.mark.parametrize("key", ["same", "other"])
def test_a_second_run_is_refused_while_the_first_publishes(source, plan, old_output, monkeypatch, step, key) -> None:
    """Before the folder takes its place, and while the old one, then at OUT.partial, is deleted."""
    usual, refused = getattr(staging, step), []
    second = plan_compilation(source, plan, "ranks").key if key == "same" else "0"

    def step_with_company(*arguments: Any) -> Any:
        meet_another_run(old_output, second, refused)
        return usual(*arguments)

    monkeypatch.setattr(staging, step, step_with_company)
    reshard(source, plan, old_output, force=True)
    assert refused
    assert verify_files(old_output, source).passed
    assert CompiledManifest.load(old_output).plan_digest == plan.digest


def test_a_second_run_is_refused_while_a_failed_one_cleans_up(tmp_path, source, plan, monkeypatch) -> None:
    refused: list[str] = []

    def remove_with_company(*arguments: Any) -> None:
        meet_another_run(tmp_path / "out", "0", refused)
        atomic_folder.remove_folder(*arguments)

    monkeypatch.setattr(staging, "remove_folder", remove_with_company)
    monkeypatch.setattr(build, "_check_room", lambda *_: (_ for _ in ()).throw(OutputError("no room")))
    with pytest.raises(OutputError, match="no room"):
        reshard(source, plan, tmp_path / "out")
    assert refused
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_output_that_came_up_meanwhile_is_not_replaced_without_force(tmp_path, source, plan, monkeypatch) -> None:
    """By the time this run gets the lock, another has finished."""
    out = tmp_path / "out"
    usual = build.write_compilation

    def finish_another(*arguments: Any) -> Any:
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
        return usual(*arguments)

    monkeypatch.setattr("specmoe.placement.reshard.compile.write_compilation", finish_another)
    with pytest.raises(OutputError, match="exists already"):
        reshard(source, plan, out)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_lock_file_that_a_killed_run_left_does_not_lock(tmp_path, source, plan) -> None:
    (tmp_path / "out.partial.lock").touch()
    reshard(source, plan, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_strangers_thing_in_the_place_of_the_lock_is_kept(tmp_path, source, plan, kind) -> None:
    place = tmp_path / "out.partial.lock"
    make = {"file": lambda: place.write_text("a"), "folder": place.mkdir, "link": lambda: place.symlink_to("gone")}
    make[kind]()
    with pytest.raises(OutputError, match="is in the way and was not written by specmoe"):
        reshard(source, plan, tmp_path / "out")
    assert os.path.lexists(place)


def test_of_many_processes_one_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    """Each that comes in finds itself alone, although the lock file is deleted and made anew all the time."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from specmoe.errors import OutputError\n"
        "from specmoe.placement.reshard.output_lock import output_lock\n"
        "out, entered = Path(sys.argv[1]), 0\n"
        "while entered < 100:\n"
        "    try:\n"
        "        with output_lock(out):\n"
        "            os.mkdir(out)\n"
        "            os.rmdir(out)\n"
        "            entered += 1\n"
        "    except OutputError:\n"
        "        pass\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == [""] * 3
    assert os.listdir(tmp_path) == []


def test_the_lock_of_another_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "out.partial.lock"
    with output_lock(tmp_path / "out"):
        path.unlink()
        path.touch()
    assert path.exists()
