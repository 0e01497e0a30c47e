"""The package is whole however it is installed: sdist, wheel, and as two type checkers see it."""

import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import specmoe

ROOT = Path(__file__).parents[1]
STAGES = ["profiler", "placement", "kernels", "runtime", "cli"]


def package_files() -> set[str]:
    """Every source file that an installation must hold, as `specmoe/…`."""
    files = {f"specmoe/{path.name}" for path in (ROOT / "src/specmoe").glob("*.py")} | {"specmoe/py.typed"}
    for stage in STAGES:
        files |= {f"specmoe/{path.relative_to(ROOT)}" for path in (ROOT / stage).rglob("*.py")}
    return files | {f"specmoe/{path.relative_to(ROOT)}" for path in (ROOT / "placement/report/page").iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def test_sdist_holds_every_source_file_as_a_plain_file(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        members = {member.name.split("/", 1)[1]: member for member in archive if "/" in member.name}
    for name in package_files():
        assert members[f"src/{name}"].isfile(), f"{name} is missing from the sdist or is no plain file"


def test_wheel_holds_every_source_file_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package_files()


def test_the_package_knows_its_version() -> None:
    assert specmoe.__version__ == version("specmoe")


def test_wheel_runs_outside_the_repository(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from specmoe.placement import plan; from specmoe.cli.main import cli; print(plan.__file__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(str(tmp_path))


@pytest.mark.parametrize(
    "checker",
    [("mypy", "--strict"), ("basedpyright", "--level", "error", "--pythonpath", sys.executable)],
    ids=["mypy", "pyright"],
)
def test_a_type_checker_sees_the_types_of_an_installed_package(checker: tuple[str, ...], tmp_path: Path) -> None:
    user_code = tmp_path / "user_code.py"
    user_code.write_text("import specmoe\nplan: specmoe.PlacementPlan = 3\n", encoding="utf-8")
    command = [str(Path(sys.executable).parent / checker[0]), *checker[1:], str(user_code)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1
    assert "PlacementPlan" in run.stdout
    assert "1 error" in run.stdout
