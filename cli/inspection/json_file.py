"""JSON files: a topology, an exported placement, the sidecar of an export."""

from pathlib import Path
from typing import Any

from specmoe.cli.inspection.inspection import Inspection, counted
from specmoe.errors import ArtifactError, CheckpointError, UsageError
from specmoe.fields import entry
from specmoe.placement.export.export_plan import EXPORT_FORMAT
from specmoe.placement.export.neutral import PLACEMENT_FORMAT
from specmoe.placement.topology import Topology
from specmoe.safetensors_header import parse_json_object

MAX_BYTES = 512 * 2**20


def inspect_json(path: Path) -> Inspection:
    """What the JSON file `path` is; raises `ArtifactError` for one of another kind."""
    num_bytes = path.stat().st_size
    if num_bytes > MAX_BYTES:
        raise ArtifactError(f"{path} is a JSON file larger than any that specmoe writes")
    try:
        value = parse_json_object(path, path.read_bytes())
        kind, facts, lines = _describe(value)
    except CheckpointError as error:
        raise ArtifactError(str(error)) from error
    except (ArtifactError, UsageError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    name = value.get("format")
    return Inspection(path=path, kind=kind, format=name, num_bytes=num_bytes, facts=facts, lines=lines)


def _describe(value: dict[str, Any]) -> tuple[str, dict[str, Any], list[tuple[str, str]]]:
    if "ranks_per_node" in value and "format" not in value:
        return _topology(Topology.from_json(value))
    if value.get("format") == EXPORT_FORMAT:
        return _sidecar(value)
    if value.get("format") == PLACEMENT_FORMAT:
        return _placement(value)
    raise ArtifactError("this JSON file is none of specmoe's; a topology or an exported placement was expected")


def _topology(topology: Topology) -> tuple[str, dict[str, Any], list[tuple[str, str]]]:
    lines = [("ranks", f"{topology.ep_size:,} on {counted(topology.num_nodes, 'node')}")]
    lines += [(name.replace("_", " "), _written(item)) for name, item in topology.to_json().items()]
    return "topology", {"ep_size": topology.ep_size, **topology.to_json()}, lines


def _sidecar(value: dict[str, Any]) -> tuple[str, dict[str, Any], list[tuple[str, str]]]:
    names = {name: entry(value, name, str) for name in ("engine", "file", "sha256", "plan_digest")}
    lost = entry(value, "lost", dict)
    lines = [(name.replace("_", " "), text) for name, text in names.items()]
    lines.append(("not carried over", ", ".join(lost) or "nothing"))
    return "description of an exported plan", {**names, "lost": lost}, lines


def _placement(value: dict[str, Any]) -> tuple[str, dict[str, Any], list[tuple[str, str]]]:
    facts: dict[str, Any] = {name: entry(value, name, int) for name in ("ep_size", "num_logical_experts", "top_k")}
    facts |= {"num_layers": len(entry(value, "layers", list)), "plan_digest": entry(value, "plan_digest", str)}
    lines = [
        ("model", f"{counted(facts['num_layers'], 'MoE layer')}, {facts['num_logical_experts']:,} experts"),
        ("ranks", f"{facts['ep_size']:,}"),
        ("plan's digest", facts["plan_digest"]),
    ]
    return "placement exported as JSON", facts, lines


def _written(item: Any) -> str:
    return ", ".join(map(str, item)) if isinstance(item, list | tuple) else str(item)
