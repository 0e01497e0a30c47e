"""Killed, interrupted, out of disk, or raced: the output is the old state or the new one, and work is not lost."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from specmoe import atomic_folder
from specmoe.errors import OutputError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard import build, copy_bytes
from specmoe.placement.reshard.compilation import plan_compilation
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.manifest import CompiledManifest
from specmoe.placement.reshard.staging import JOURNAL_FILE, Staging
from specmoe.placement.reshard.verify_files import verify_files

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
OTHER_ROWS = [ROWS[1], ROWS[0]]


@pytest.fixture
def plan(permutation_plan: Callable[..., PlacementPlan]) -> PlacementPlan:
    return permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))


@pytest.fixture
def other_plan(permutation_plan: Callable[..., PlacementPlan]) -> PlacementPlan:
    return permutation_plan(OTHER_ROWS, ep_size=2, layer_ids=(1, 2))


@pytest.fixture
def source(tmp_path: Path, make_checkpoint: Callable[..., Path], recipes: dict[str, Any]) -> Path:
    return make_checkpoint(tmp_path / "m", recipes["mixtral"])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Interrupted(BaseException):
    """Stands for Ctrl-C: not an `Exception`."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, num_files: int, error: BaseException) -> None:
    """Make the writing of the file after `num_files` fail halfway."""
    original, written = copy_bytes.write_file, iter(range(num_files + 1))

    def write(path: Path, header: bytes, *rest: Any, **options: Any) -> Any:
        if next(written, None) == num_files:
            path.write_bytes(header[: len(header) // 2])
            raise error
        return original(path, header, *rest, **options)

    monkeypatch.setattr(build, "write_file", write)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("written", [0, 3])
def test_a_full_disk_leaves_the_old_state(tmp_path, source, plan, other_plan, monkeypatch, code, written) -> None:
    out = tmp_path / "out"
    reshard(source, other_plan, out)
    before = snapshot(tmp_path)
    interrupt_after(monkeypatch, written, OSError(code, os.strerror(code)))
    with pytest.raises(OutputError, match=f"cannot write {out}: {os.strerror(code)}"):
        reshard(source, plan, out, force=True, jobs=1)
    assert snapshot(tmp_path) == before


def test_a_real_limit_on_writing_is_one_sentence(tmp_path, source, plan) -> None:
    plan.save(tmp_path / "p")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from specmoe.cli.main import main; main()"
    )
    arguments = ["reshard", str(source), str(tmp_path / "p"), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"specmoe: cannot write {tmp_path / 'out'}: File too large\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "p"]


def test_too_little_room_is_seen_before_writing(tmp_path, source, plan, monkeypatch) -> None:
    usage = type(build.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(OutputError, match=r"1\.00 kB free, .* MB are needed"):
        reshard(source, plan, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_an_interrupted_run_goes_on_without_redoing_finished_files(tmp_path, source, plan, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, Interrupted())
        with pytest.raises(Interrupted):
            reshard(source, plan, out, jobs=1)
    assert not out.exists()
    journal = (tmp_path / "out.partial" / JOURNAL_FILE).read_text().splitlines()
    finished = {json.loads(line)["name"] for line in journal[1:]}
    assert len(finished) >= 3
    written = count_writes(monkeypatch)
    manifest = reshard(source, plan, out, jobs=1)
    assert set(written) == set(manifest.files) - finished - {"plan.safetensors"}
    assert verify_files(out, source).passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    original = copy_bytes.write_file

    def write(path: Path, *rest: Any, **options: Any) -> Any:
        written.append(path.name)
        return original(path, *rest, **options)

    monkeypatch.setattr(build, "write_file", write)
    return written


@pytest.mark.parametrize("change", ["plan", "layout", "source", "sidecar", "journal"])
def test_what_was_begun_for_something_else_is_not_used(tmp_path, source, plan, other_plan, monkeypatch, change) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, Interrupted())
        with pytest.raises(Interrupted):
            reshard(source, plan, out, layout="hf", jobs=1)
    if change == "source":
        shard = sorted(source.glob("*.safetensors"))[0]
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(shard, ns=(1, 1))
    if change == "sidecar":
        (source / "tokenizer.json").write_text('{"version": "2.0"}')
    if change == "journal":
        (tmp_path / "out.partial" / JOURNAL_FILE).write_bytes(b'{"key": "abc"}\n{"na')
    written = count_writes(monkeypatch)
    layout = "ranks" if change == "layout" else "hf"
    manifest = reshard(source, other_plan if change == "plan" else plan, out, layout=layout, jobs=1)
    assert len(written) == len(manifest.files) - 1
    assert verify_files(out, source).passed


def test_what_was_half_written_does_not_end_up_in_the_output(tmp_path, source, plan, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, Interrupted())
        with pytest.raises(Interrupted):
            reshard(source, plan, out, jobs=1)
    (tmp_path / "out.partial" / "plan.safetensors.partial-123").write_bytes(b"half a plan")
    reshard(source, plan, out)
    assert verify_files(out, source).passed


@pytest.mark.parametrize("damage", [lambda old: old[:-1], lambda old: old[:-1] + bytes([old[-1] ^ 1])])
def test_a_finished_file_that_was_changed_is_written_again(tmp_path, source, plan, monkeypatch, damage) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, Interrupted())
        with pytest.raises(Interrupted):
            reshard(source, plan, out, jobs=1)
    finished = sorted((tmp_path / "out.partial").glob("*.safetensors"))[0]
    finished.write_bytes(damage(finished.read_bytes()))
    reshard(source, plan, out)
    assert verify_files(out, source).passed


@pytest.mark.parametrize("name", ["../m/tokenizer.json", "link.json"])
def test_a_journal_that_names_what_is_not_a_file_of_its_folder_is_not_believed(tmp_path, source, plan, name) -> None:
    outside = source / "tokenizer.json"
    written = outside.stat()
    key = plan_compilation(source, plan, "ranks").key
    line = {"name": name, "bytes": written.st_size, "sha256": "0" * 64, "written_ns": written.st_mtime_ns}
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "link.json").symlink_to(outside)
    (folder / JOURNAL_FILE).write_text("\n".join(map(json.dumps, [{"key": key}, line])))
    with Staging(tmp_path / "out", key) as staging:
        assert staging.finished == {}
    assert [path.name for path in folder.iterdir()] == [JOURNAL_FILE]


def test_force_puts_the_new_folder_in_place_of_the_old(tmp_path, source, plan, other_plan) -> None:
    out = tmp_path / "out"
    reshard(source, other_plan, out)
    reshard(source, plan, out, layout="hf", force=True)
    assert CompiledManifest.load(out).layout == "hf"
    assert verify_files(out, source).passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


def test_force_replaces_an_empty_folder(tmp_path, source, plan) -> None:
    (tmp_path / "out").mkdir()
    reshard(source, plan, tmp_path / "out", force=True)
    assert verify_files(tmp_path / "out").passed


def test_a_file_system_without_exchange_is_served_by_renames(tmp_path, source, plan, other_plan, monkeypatch) -> None:
    monkeypatch.setattr(atomic_folder, "_exchange", lambda first, second: False)
    out = tmp_path / "out"
    reshard(source, other_plan, out)
    reshard(source, plan, out, force=True)
    assert CompiledManifest.load(out).plan_digest == plan.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


@pytest.fixture
def large_source(tmp_path: Path, make_checkpoint: Callable[..., Path], recipes: dict[str, Any]) -> Path:
    """Large enough (about 20 MB) that a kill at a random moment meets every phase."""
    recipe = recipes["mixtral"]
    wide = {name: ("BF16", (512, 1000) if "{e}" in name else (8, 4)) for name in recipe.tensors}
    return make_checkpoint(tmp_path / "m", replace(recipe, tensors=wide, layer_ids=(1,)))


def test_killed_at_any_moment_the_output_is_old_or_new(tmp_path, large_source, permutation_plan) -> None:
    plans = [permutation_plan([row], ep_size=4, layer_ids=(1,)) for row in ROWS]
    for number, plan in enumerate(plans):
        plan.save(tmp_path / f"{number}.plan")
    out = tmp_path / "out"
    reshard(large_source, plans[1], out)
    rng = random.Random(0)
    seconds = start_and_stop(tmp_path, large_source, 0, signal.SIGCONT, 0.0).seconds
    codes = set()
    for round_ in range(7):
        delay = rng.uniform(0.0, 1.2) * seconds
        codes.add(start_and_stop(tmp_path, large_source, round_ % 2, signal.SIGKILL, delay).code)
        assert CompiledManifest.load(out).plan_digest in {plan.digest for plan in plans}
        assert verify_files(out).passed
    assert -signal.SIGKILL in codes
    reshard(large_source, plans[0], out, force=True)
    assert verify_files(out, large_source).passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.plan", "1.plan", "m", "out"]


def test_ctrl_c_ends_with_one_sentence_and_the_next_run_goes_on(tmp_path, large_source, permutation_plan) -> None:
    permutation_plan([ROWS[0]], ep_size=4, layer_ids=(1,)).save(tmp_path / "0.plan")
    ended = start_and_stop(tmp_path, large_source, 0, signal.SIGINT, 0.02)
    message = f"specmoe: interrupted; {tmp_path / 'out.partial'} is kept, and the same command goes on from there"
    assert (ended.code, ended.errors) == (1, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.plan", "m", "out.partial"]
    start_and_stop(tmp_path, large_source, 0, signal.SIGCONT, 0.0)
    assert verify_files(tmp_path / "out", large_source).passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.plan", "m", "out"]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended, and how long after it had begun to write."""

    code: int
    errors: str
    seconds: float


def start_and_stop(folder: Path, source: Path, number: int, how: signal.Signals, delay: float) -> Ended:
    """Start a forced reshard and send it a signal `delay` seconds after it began to write."""
    arguments = ["reshard", source, folder / f"{number}.plan", "-o", folder / "out", "--force", "--jobs", "1"]
    command = [sys.executable, "-c", "from specmoe.cli.main import main; main()", *map(str, arguments)]
    journal = folder / "out.partial" / JOURNAL_FILE
    left_behind = last_change(journal)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while last_change(journal) in (0, left_behind) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    begun = time.monotonic()
    time.sleep(delay)
    process.send_signal(how)
    _, errors = process.communicate()
    return Ended(code=process.returncode, errors=errors.strip(), seconds=time.monotonic() - begun)


def last_change(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
