"""How rows are cut into blocks for the kernels that move them: the same for every device, until one has been tuned.

`specmoe.kernels.launch.tune` measures what is best on a device and keeps it in a file beside Triton's compiled
kernels, one for each kind of device. Nothing is measured while a model runs, so that no step takes longer than others
and every one can be captured in a CUDA graph.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from specmoe.atomic import atomic_file
from specmoe.kernels.launch.compiler import cache_folder

FORMAT = "specmoe.launch-shapes/1"
# Batches up to so many rows are tuned apart from larger ones.
FEW_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class LaunchShape:
    """block: how many elements of a row a program moves; warps: by how many warps."""

    block: int
    warps: int


@dataclass(frozen=True, kw_only=True)
class MoveCase:
    """What a launch shape is chosen by: the kernel, a row's bytes, the places of a row, the number of rows."""

    operation: str
    row_bytes: int
    choices: int
    rows: int

    @property
    def key(self) -> str:
        """The name of the case in the table."""
        return f"{self.operation} {self.row_bytes} {self.choices} {'few' if self.rows <= FEW_ROWS else 'many'}"


def launch_shape(case: MoveCase, device: torch.device, default: LaunchShape) -> LaunchShape:
    """What was found best for the case on this kind of device, `default` where it has not been tuned."""
    return tuned_shapes(device_name(device)).get(case.key, default)


@cache
def tuned_shapes(name: str) -> Mapping[str, LaunchShape]:
    """The table of the device called `name`, by `MoveCase.key`; empty where there is none."""
    path = table_path(name)
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        warnings.warn(f"{path} is left out, delete it or tune again: {error}", stacklevel=2)
        return {}


def keep_shapes(name: str, found: Mapping[str, LaunchShape]) -> Path:
    """Add `found` to the table of the device called `name`; where it is."""
    path = table_path(name)
    shapes = {**tuned_shapes(name), **found}
    table = {key: [shape.block, shape.warps] for key, shape in sorted(shapes.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, force=True) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, "shapes": table}, indent=1) + "\n", encoding="utf-8")
    tuned_shapes.cache_clear()
    return path


def table_path(name: str) -> Path:
    """The file of the device called `name`."""
    return cache_folder() / f"specmoe-{''.join(c if c.isalnum() else '-' for c in name)}.json"


@cache
def device_name(device: torch.device) -> str:
    """The kind of device; on a CPU the kernels run in Triton's interpreter."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def _parse(table: object) -> dict[str, LaunchShape]:
    if not isinstance(table, dict) or table.get("format") != FORMAT or not isinstance(table.get("shapes"), dict):
        raise ValueError(f"no table in the form {FORMAT}")
    shapes = {}
    for key, value in table["shapes"].items():
        if not isinstance(value, list) or len(value) != 2 or not all(_is_power_of_two(number) for number in value):
            raise ValueError(f"{key!r} has {value!r}, a block and a number of warps were expected")
        shapes[key] = LaunchShape(block=value[0], warps=value[1])
    return shapes


def _is_power_of_two(number: object) -> bool:
    return isinstance(number, int) and 0 < number <= 1 << 16 and number & (number - 1) == 0
