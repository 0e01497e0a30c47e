"""The architecture's rules on imports, checked on the source text and in a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ["profiler", "placement", "kernels", "runtime", "cli"]
# What a later stage may take from an earlier one: the types of the artifacts, and the functions the command line and
# the runtime call.
ARTIFACTS = {
    "specmoe.profiler.routing_profile",
    "specmoe.profiler.token_counts",
    "specmoe.placement.plan",
    "specmoe.placement.topology",
    "specmoe.placement.reshard.manifest",
    "specmoe.placement.reshard.verify_report",
}
ENTRY_POINTS = {
    "specmoe.placement.capacity_quotas",
    "specmoe.placement.request_router",
    "specmoe.placement.reshard.verify_files",
}
SOURCES = [path for stage in STAGES for path in sorted((ROOT / stage).rglob("*.py"))]
FOUNDATION = sorted((ROOT / "src/specmoe").glob("*.py"))


def imported_modules(path: Path) -> list[str]:
    """Every module named in an import of `path`, `TYPE_CHECKING` blocks included."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: relative import"
            modules.append(node.module or "")
    return modules


def stage_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "specmoe" and parts[1] in STAGES else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_stage_imports_only_artifact_types_of_earlier_stages(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    for module in imported_modules(path):
        stage = stage_of(module)
        if stage is None or stage == own or own == "cli":
            continue
        assert STAGES.index(stage) < STAGES.index(own), f"{own} imports the later stage {stage}: {module}"
        allowed = module in ARTIFACTS | ENTRY_POINTS or (own == "runtime" and stage == "kernels")
        assert allowed, f"{own} imports {module}, which is no artifact type"


@pytest.mark.parametrize("path", FOUNDATION, ids=lambda path: path.name)
def test_the_foundation_imports_no_stage(path: Path) -> None:
    if path.name == "__init__.py":
        return
    assert [module for module in imported_modules(path) if stage_of(module)] == []


def modules_after(statement: str) -> set[str]:
    """Top-level packages loaded by a fresh interpreter that runs `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_solving_and_evaluating_load_neither_torch_nor_transformers() -> None:
    loaded = modules_after("import specmoe; specmoe.solve; specmoe.evaluate; specmoe.RoutingProfile; specmoe.Topology")
    assert "numpy" in loaded
    assert loaded.isdisjoint({"torch", "transformers"})


def test_help_loads_nothing_heavy() -> None:
    loaded = modules_after("from specmoe.cli.main import cli; cli(['--help'], standalone_mode=False)")
    assert loaded.isdisjoint({"torch", "transformers", "numba", "scipy", "sklearn", "ortools"})


def test_the_package_named_kernels_of_others_is_not_shadowed() -> None:
    loaded = modules_after(
        "import importlib.util as u\nspec = u.find_spec('kernels')\nassert spec is None or 'specmoe' not in str(spec)"
    )
    assert loaded
