"""The machine that a plan is made for: ranks on nodes, links between them, and what each rank can hold and do."""

import json
import math
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import ArtifactError, UsageError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Ranks of a node are consecutive; bandwidths in GB/s and latencies in microseconds, None where not given.

    relative_speed: one positive number per rank (the load cap is on load over speed). slots: expert slots per rank
    and layer, in place of equal slots.
    """

    ranks_per_node: tuple[int, ...]
    intra_node_gb_per_s: float | None = None
    inter_node_gb_per_s: float | None = None
    intra_node_latency_us: float | None = None
    inter_node_latency_us: float | None = None
    relative_speed: tuple[float, ...] | None = None
    slots: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.ranks_per_node or any(not _is_count(count) for count in self.ranks_per_node):
            raise UsageError(f"ranks_per_node is {list(self.ranks_per_node)}, positive whole numbers were expected")
        for name in _LINK_FIELDS:
            value = getattr(self, name)
            if value is not None and not _is_positive(value):
                raise UsageError(f"{name} is {value!r}, a positive number from {_LEAST:g} to {_MOST:g} was expected")
        _check_per_rank("relative_speed", self.relative_speed, self.ep_size, _is_positive)
        _check_per_rank("slots", self.slots, self.ep_size, _is_count)

    @classmethod
    def single_node(cls, ep_size: int) -> "Topology":
        """`ep_size` equal ranks on one node."""
        if ep_size < 1:
            raise UsageError(f"ep_size is {ep_size}, at least 1 was expected")
        return cls(ranks_per_node=(ep_size,))

    @property
    def ep_size(self) -> int:
        return sum(self.ranks_per_node)

    @property
    def num_nodes(self) -> int:
        return len(self.ranks_per_node)

    @property
    def has_slow_links_between_nodes(self) -> bool:
        """Whether there are several nodes, and bandwidths say that their links are slower than those within them."""
        fast, slow = self.intra_node_gb_per_s, self.inter_node_gb_per_s
        return self.num_nodes > 1 and fast is not None and slow is not None and slow < fast

    @cached_property
    def node_of_rank(self) -> NDArray[np.int32]:
        """int32 [R]: the node of each rank."""
        return np.repeat(np.arange(self.num_nodes, dtype=np.int32), self.ranks_per_node)

    @cached_property
    def speed_of_rank(self) -> NDArray[np.float64]:
        """float64 [R]: relative speed, 1 where none is given."""
        return np.asarray(self.relative_speed or np.ones(self.ep_size), dtype=np.float64)

    def slots_of_rank(self, num_logical_experts: int, extra_slots: int = 0) -> NDArray[np.int32]:
        """int32 [R]: expert slots of each rank, `ceil(E / R) + extra_slots` where the topology gives none.

        Raises `UsageError` where the slots cannot hold every expert, or a rank has more slots than there are experts
        (it would hold one twice).
        """
        R, E = self.ep_size, num_logical_experts
        if R > E:
            raise UsageError(f"ep_size is {R}, at most one rank per expert ({E}) was expected")
        if extra_slots < 0:
            raise UsageError(f"extra_slots is {extra_slots}, at least 0 was expected")
        slots = [count + extra_slots for count in self.slots or [math.ceil(E / R)] * R]
        if sum(slots) < E:
            raise UsageError(f"the topology has {sum(slots)} slots in all, at least {E} (one per expert) were expected")
        if max(slots) > E:
            raise UsageError(f"a rank has {max(slots)} slots, at most {E} (each expert once) were expected")
        return np.asarray(slots, dtype=np.int32)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the topology file, without the keys that are not given."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Any) -> "Topology":
        """Read the JSON object of a topology file; unknown keys are refused."""
        if not isinstance(value, dict):
            raise UsageError('a topology is a JSON object such as {"ranks_per_node": [4, 4]}')
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(value) - known)
        if unknown:
            raise UsageError(f"the topology has unknown keys {unknown}; known are {sorted(known)}")
        if not isinstance(value.get("ranks_per_node"), list):
            raise UsageError('the topology needs "ranks_per_node", a list such as [4, 4]')
        arguments: dict[str, Any] = {
            key: tuple(item) if isinstance(item, list) else item for key, item in value.items()
        }
        return cls(**arguments)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Topology":
        """Read a topology file (JSON); raises `ArtifactError`, naming the file, where anything in it does not fit."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8-sig")))
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
        except UsageError as error:
            raise ArtifactError(f"{path}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} cannot be read as a JSON topology: {error}") from error


# Far past any machine, and their quotients and sums are still floats.
_LEAST, _MOST = 1e-9, 1e9

_LINK_FIELDS = (
    "intra_node_gb_per_s",
    "inter_node_gb_per_s",
    "intra_node_latency_us",
    "inter_node_latency_us",
)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _LEAST <= value <= _MOST


def _check_per_rank(name: str, values: Any, ep_size: int, is_valid: Any) -> None:
    if values is None:
        return
    if not isinstance(values, tuple) or len(values) != ep_size or not all(is_valid(value) for value in values):
        raise UsageError(
            f"{name} is {values!r}, {ep_size} positive numbers (one per rank) up to {_MOST:g} were expected"
        )
