"""Write a plan in an engine's format, and beside it FILE.specmoe.json, which says what plan it is and what was lost."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from specmoe.atomic import atomic_file, refuse_existing
from specmoe.errors import MismatchError, UsageError
from specmoe.placement.export.engine import Engine
from specmoe.placement.export.engines import ENGINES
from specmoe.placement.export.lost import lost
from specmoe.placement.export.slots import has_equal_blocks, num_redundant
from specmoe.placement.plan import PlacementPlan

EXPORT_FORMAT = "specmoe.export/1"


def sidecar_path(path: Path) -> Path:
    """Where the description of the exported file `path` stands."""
    return path.with_name(f"{path.name}.specmoe.json")


def refuse_outputs(path: Path, engine_name: str, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise `OutputError` where the file or its sidecar may not be written or is one of `inputs`, `UsageError` for a
    name that the engine does not take."""
    suffix = ENGINES[engine_name].suffix
    if suffix is not None and path.suffix != suffix:
        raise UsageError(f"{engine_name} reads only files whose name ends in {suffix}, and the output is {path}")
    for output in (path, sidecar_path(path)):
        refuse_existing(output, force=force, inputs=inputs)


def export_plan(
    plan: PlacementPlan, engine_name: str, path: str | Path, *, num_layers: int | None = None, force: bool = False
) -> dict[str, Any]:
    """Write `plan` to `path` for the engine `engine_name` of `ENGINES`, and return the sidecar's content.

    num_layers: all decoder layers of the model, dense ones too. `path` appears last, so where it stands its sidecar
    does. Raises `UsageError` for an unknown engine, or a missing or too small `num_layers`, `MismatchError` for a plan
    that the engine cannot express, `OutputError` for a file that cannot be written.
    """
    path = Path(path)
    if engine_name not in ENGINES:
        raise UsageError(f"engine_name is {engine_name!r}, one of {', '.join(ENGINES)} was expected")
    engine = ENGINES[engine_name]
    refuse_outputs(path, engine_name, force=force)
    _refuse_unfit(plan, engine_name, engine, num_layers)
    content = engine.text(plan, num_layers).encode()
    description = _describe(plan, engine_name, path, content)
    with atomic_file(path, force=force) as temporary:
        temporary.write_bytes(content)
        with atomic_file(sidecar_path(path), force=force) as beside:
            beside.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def _refuse_unfit(plan: PlacementPlan, engine_name: str, engine: Engine, num_layers: int | None) -> None:
    last = int(plan.layer_ids[-1])
    if num_layers is not None and num_layers <= last:
        raise UsageError(f"the model has {num_layers} decoder layers, and the plan places experts of layer {last}")
    if engine.equal_blocks and not has_equal_blocks(plan):
        slots = (plan.slot_offsets[1:] - plan.slot_offsets[:-1]).tolist()
        raise MismatchError(
            f"{engine_name} gives every rank the same number of slots, and the plan's ranks have {slots}; "
            "solve without uneven slots in the topology, or export --to json"
        )


def _describe(plan: PlacementPlan, engine_name: str, path: Path, content: bytes) -> dict[str, Any]:
    engine = ENGINES[engine_name]
    return {
        "format": EXPORT_FORMAT,
        "engine": engine_name,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "plan_digest": plan.digest,
        "profile_fingerprint": plan.profile_fingerprint,
        "model_fingerprint": plan.model_fingerprint,
        "ep_size": plan.ep_size,
        "num_logical_experts": plan.num_logical_experts,
        "num_physical_experts": plan.num_physical_experts,
        "num_redundant_experts": num_redundant(plan),
        "layer_ids": plan.layer_ids.tolist(),
        "launch": list(engine.launch(plan, path)),
        "lost": lost(plan, engine),
        "warning": engine.warning,
    }
