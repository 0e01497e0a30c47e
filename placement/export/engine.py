"""What an exporter states about its engine: how the file reads, how the engine is started with it, what it demands."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specmoe.placement.plan import PlacementPlan


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine's reading of a plan; the names are those of `specmoe export --to`.

    text: the file's content, from the plan and the number of decoder layers (None where it is not known).
    launch: settings that the engine must be started with, from the plan and the file's path, one string each.
    equal_blocks: the engine takes slot p to be on rank `p // (P / R)`. every_layer: the file has a row for dense
    layers too. suffix: how the file's name must end. keeps_dispatch: the file carries `dispatch_slot` and
    `replica_choice`. warning: what a user must know before relying on it.
    """

    text: Callable[[PlacementPlan, int | None], str]
    launch: Callable[[PlacementPlan, Path], tuple[str, ...]]
    equal_blocks: bool = True
    every_layer: bool = False
    suffix: str | None = None
    keeps_dispatch: bool = False
    warning: str | None = None
