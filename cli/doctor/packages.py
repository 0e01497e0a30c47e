"""The Python packages: what is installed, and whether it fits what specmoe asks for."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from specmoe.cli.doctor.finding import Finding, Status

_SERVES = {
    "accelerate": "profile models larger than one device",
    "matplotlib": "report --png",
    "ortools": "solve --method ilp, proven bounds",
    "pyarrow": "profile on parquet files",
    "torch": "profile, reshard --layout hf, load",
    "transformers": "profile, load",
    "triton": "dispatch kernels on a GPU",
}
_FOR_DEVELOPERS = "dev"


def package_findings() -> Iterator[Finding]:
    """What specmoe requires, then what single commands need, each once."""
    wanted = [Requirement(text) for text in requires("specmoe") or []]
    seen = set()
    for requirement in wanted:
        if requirement.name in seen or _only_for_developers(requirement):
            continue
        seen.add(requirement.name)
        yield _finding(requirement, needed=requirement.marker is None)
    for name in sorted(set(_SERVES) - seen):
        yield _finding(Requirement(name), needed=False)


def _only_for_developers(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is not None and f'extra == "{_FOR_DEVELOPERS}"' in str(marker)


def _finding(requirement: Requirement, *, needed: bool) -> Finding:
    serves = _SERVES.get(requirement.name, "all commands" if needed else "")
    unusable: Status = "missing" if needed else "absent"
    asked = str(requirement.specifier)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Finding(what=requirement.name, status=unusable, detail=f"not installed {asked}".strip(), serves=serves)
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding(what=requirement.name, status=unusable, detail=f"{found}, {asked} is needed", serves=serves)
    return Finding(what=requirement.name, status="usable", detail=found, serves=serves)
