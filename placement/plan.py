"""The placement plan: which expert sits in which slot, which slot serves which rank, and where tokens start.

Glossary. A *logical expert* is an expert as the original checkpoint numbers it. A *physical expert* or *slot* is a
place on a rank that holds one logical expert's weights. A *replica* is a second or later slot of the same logical
expert, never on a rank that already holds it. A *rank* is one expert-parallel process; ranks of a *node* are
consecutive. The *home rank* of a token is where its hidden state sits when a layer's dispatch starts. A *remote copy*
is one (token, rank) pair with rank != home where at least one of the token's experts runs.

Worked example: 4 experts, 2 ranks, 3 slots each, so 2 slots hold replicas.

    physical_to_logical = [[0, 2, 3,  1, 3, 0]]     rank_of_physical = [0, 0, 0, 1, 1, 1]

Experts 0 and 3 sit on both ranks. A token at home on rank 0 that uses experts 2 and 3 finds both there: no remote
copy. One at home on rank 1 that uses 2 and 3 sends one copy to rank 0 for expert 2; `dispatch_slot[0, 1, 3]` is 4,
its own slot.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array, Description, digest, read_artifact, write_artifact
from specmoe.errors import ArtifactError, UsageError
from specmoe.fields import check_range, check_tensor, entry, optional_entry
from specmoe.placement.gap import gap_above
from specmoe.placement.topology import Topology

PLAN_FORMAT = "specmoe.plan/1"
# By how much a float32 sum of expected pairs may miss the experts of a token, relatively.
_EXPECTED_WITHIN = 1e-4

ReplicaChoice = Literal["static", "cover"]
Attention = Literal["dp", "tp"]


@dataclass(frozen=True, kw_only=True)
class PlacementPlan:
    """A legal plan: `__post_init__` refuses every shape, value or placement that breaks the rules of the module's text.

    physical_to_logical: int32 [L, P]. rank_of_physical: int32 [P], non-decreasing, the same in all layers.
    dispatch_slot: int32 [L, R, E], the slot that a token at home on rank r uses for expert e.
    token_to_rank: int16 [L, V] or None (tp), -1 = no opinion; token_confidence: float16 [L, V], 0 to 1, with it.
    token_affinity: float16 [V, R] or None (dp). layer_ids: int32 [L].
    expected_pairs: float32 [L, R, P] or None, the pairs of one token at home on rank r that each slot is expected to
    serve; the sum over slots is K. It sizes what is kept ready for the plan's traffic, and decides nothing else.
    objective is remote copies per token on the profile (mean over layers, weighted by link cost where the topology has
    slower links); bound is a proven lower bound on it or None; predicted holds metrics by name.
    """

    topology: Topology
    num_logical_experts: int
    top_k: int
    attention: Attention
    replica_choice: ReplicaChoice
    layer_ids: NDArray[np.int32]
    physical_to_logical: NDArray[np.int32]
    rank_of_physical: NDArray[np.int32]
    dispatch_slot: NDArray[np.int32]
    token_to_rank: NDArray[np.int16] | None = None
    token_confidence: NDArray[np.float16] | None = None
    token_affinity: NDArray[np.float16] | None = None
    expected_pairs: NDArray[np.float32] | None = None
    method: str
    seed: int = 0
    objective: float | None = None
    bound: float | None = None
    predicted: Mapping[str, Any] = field(default_factory=dict)
    profile_fingerprint: str | None = None
    model_fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise ArtifactError(f"attention is {self.attention!r}, 'dp' or 'tp' was expected")
        if self.replica_choice not in get_args(ReplicaChoice):
            raise ArtifactError(f"replica_choice is {self.replica_choice!r}, 'static' or 'cover' was expected")
        if not 1 <= self.top_k <= self.num_logical_experts:
            raise ArtifactError(f"top_k is {self.top_k}, 1 to {self.num_logical_experts} was expected")
        self._check_shapes()
        self._check_slots()
        self._check_dispatch()

    @property
    def ep_size(self) -> int:
        return self.topology.ep_size

    @property
    def num_layers(self) -> int:
        return len(self.layer_ids)

    @property
    def num_physical_experts(self) -> int:
        return len(self.rank_of_physical)

    @property
    def gap(self) -> float | None:
        """How far the objective may lie above the best possible, relative to the bound; None without a bound, and where
        `gap_above` has none.
        """
        if self.objective is None or self.bound is None:
            return None
        return gap_above(self.bound, self.objective)

    @cached_property
    def slot_offsets(self) -> NDArray[np.int64]:
        """int64 [R + 1]: rank r owns the slots `slot_offsets[r] : slot_offsets[r + 1]`."""
        return np.searchsorted(self.rank_of_physical, np.arange(self.ep_size + 1))

    @cached_property
    def holds(self) -> NDArray[np.bool_]:
        """bool [L, R, E]: whether a rank holds an expert."""
        L, R, E = self.num_layers, self.ep_size, self.num_logical_experts
        held = np.zeros((L, R, E), dtype=np.bool_)
        held[np.arange(L)[:, None], self.rank_of_physical[None, :], self.physical_to_logical] = True
        return held

    @cached_property
    def dispatch_rank(self) -> NDArray[np.int32]:
        """int32 [L, R, E]: the rank of each `dispatch_slot`."""
        return self.rank_of_physical[self.dispatch_slot]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that the plan holds, as hexadecimal."""
        return digest(self._tensors(), self._description())

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write the plan to `path`, whole or not at all."""
        write_artifact(Path(path), self._tensors(), self._description(), force=force)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "PlacementPlan":
        """Read and check a plan; raises `ArtifactError`, naming the file, where anything does not fit."""
        tensors, description = read_artifact(Path(path), PLAN_FORMAT)
        try:
            return cls._from_file(tensors, description)
        except (ArtifactError, UsageError) as error:
            raise ArtifactError(f"{path}: {error}") from error

    def _check_shapes(self) -> None:
        L, R, E, P = self.num_layers, self.ep_size, self.num_logical_experts, self.num_physical_experts
        check_tensor("layer_ids", self.layer_ids, (np.int32,), (L,))
        check_tensor("physical_to_logical", self.physical_to_logical, (np.int32,), (L, P))
        check_tensor("rank_of_physical", self.rank_of_physical, (np.int32,), (P,))
        check_tensor("dispatch_slot", self.dispatch_slot, (np.int32,), (L, R, E))
        check_range("physical_to_logical", self.physical_to_logical, 0, E)
        check_range("rank_of_physical", self.rank_of_physical, 0, R)
        check_range("dispatch_slot", self.dispatch_slot, 0, P)
        if L < 1 or np.any(np.diff(self.layer_ids) <= 0):
            raise ArtifactError("tensor layer_ids must hold at least one layer and increase")
        check_range("layer_ids", self.layer_ids, 0, np.inf)
        self._check_tables(L, R)
        self._check_expected((L, R, P))

    def _check_expected(self, shape: tuple[int, int, int]) -> None:
        if self.expected_pairs is None:
            return
        check_tensor("expected_pairs", self.expected_pairs, (np.float32,), shape)
        check_range("expected_pairs", self.expected_pairs, 0, np.inf)
        of_token = self.expected_pairs.sum(axis=2, dtype=np.float64)
        for layer, rank in np.argwhere(np.abs(of_token - self.top_k) > _EXPECTED_WITHIN * self.top_k)[:1]:
            raise ArtifactError(
                f"layer {self.layer_ids[layer]}: expected_pairs of rank {rank} add up to {of_token[layer, rank]:g}, "
                f"the {self.top_k} experts of a token were expected"
            )

    def _check_tables(self, L: int, R: int) -> None:
        if (self.token_to_rank is None) != (self.token_confidence is None):
            raise ArtifactError("token_to_rank and token_confidence belong together: one of them is missing")
        if self.token_to_rank is not None and self.token_confidence is not None:
            if self.attention != "tp":
                raise ArtifactError("token_to_rank belongs to attention 'tp', this plan is for 'dp'")
            check_tensor("token_to_rank", self.token_to_rank, (np.int16,), (L, -1))
            check_tensor("token_confidence", self.token_confidence, (np.float16,), self.token_to_rank.shape)
            check_range("token_to_rank", self.token_to_rank, -1, R)
            check_range("token_confidence", self.token_confidence, 0, 1.0001)
        if self.token_affinity is not None:
            if self.attention != "dp":
                raise ArtifactError("token_affinity belongs to attention 'dp', this plan is for 'tp'")
            check_tensor("token_affinity", self.token_affinity, (np.float16,), (-1, R))
            check_range("token_affinity", self.token_affinity, float(np.finfo(np.float16).min), np.inf)

    def _check_slots(self) -> None:
        if np.any(np.diff(self.rank_of_physical) < 0):
            raise ArtifactError("tensor rank_of_physical must not decrease: slots of a rank are consecutive")
        L, E = self.num_layers, self.num_logical_experts
        placed = np.zeros((L, self.ep_size, E), dtype=np.int32)
        rows = np.broadcast_to(np.arange(L)[:, None], self.physical_to_logical.shape)
        ranks = np.broadcast_to(self.rank_of_physical[None, :], self.physical_to_logical.shape)
        np.add.at(placed, (rows, ranks, self.physical_to_logical), 1)
        for layer, rank, expert in np.argwhere(placed > 1)[:1]:
            raise ArtifactError(f"layer {self.layer_ids[layer]}: rank {rank} holds expert {expert} twice")
        for layer, expert in np.argwhere(placed.sum(axis=1) == 0)[:1]:
            raise ArtifactError(f"layer {self.layer_ids[layer]}: no slot holds expert {expert}")

    def _check_dispatch(self) -> None:
        layers = np.arange(self.num_layers)[:, None, None]
        experts = np.arange(self.num_logical_experts)
        for layer, rank, expert in np.argwhere(self.physical_to_logical[layers, self.dispatch_slot] != experts)[:1]:
            slot = self.dispatch_slot[layer, rank, expert]
            raise ArtifactError(
                f"layer {self.layer_ids[layer]}: slot {slot}, that rank {rank} uses for expert {expert}, holds another"
            )
        own_rank = np.arange(self.ep_size)[None, :, None]
        for layer, rank, expert in np.argwhere(self.holds & (self.dispatch_rank != own_rank))[:1]:
            raise ArtifactError(
                f"layer {self.layer_ids[layer]}: rank {rank} holds expert {expert} but dispatches it elsewhere"
            )

    @classmethod
    def _from_file(cls, tensors: dict[str, Array], description: Description) -> "PlacementPlan":
        required = ("layer_ids", "physical_to_logical", "rank_of_physical", "dispatch_slot")
        for name in required:
            if name not in tensors:
                raise ArtifactError(f"tensor {name} is missing")
        topology = Topology.from_json(description.get("topology"))
        if entry(description, "ep_size", int) != topology.ep_size:
            raise ArtifactError(f"ep_size is {description['ep_size']}, the topology has {topology.ep_size} ranks")
        tables = ("token_to_rank", "token_confidence", "token_affinity", "expected_pairs")
        arrays: dict[str, Any] = {name: tensors[name] for name in required}
        arrays |= {name: tensors.get(name) for name in tables}
        scalars: dict[str, Any] = {name: entry(description, name, kind) for name, kind in _REQUIRED.items()}
        scalars |= {name: optional_entry(description, name, kind) for name, kind in _OPTIONAL.items()}
        return cls(topology=topology, **arrays, **scalars)

    def _tensors(self) -> dict[str, Array]:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}

    def _description(self) -> Description:
        scalars = {name: getattr(self, name) for name in (*_REQUIRED, *_OPTIONAL)}
        scalars["predicted"] = dict(self.predicted)
        return {
            "format": PLAN_FORMAT,
            "ep_size": self.ep_size,
            "topology": self.topology.to_json(),
            "gap": self.gap,
            **scalars,
        }


_REQUIRED: dict[str, type] = {
    "num_logical_experts": int,
    "top_k": int,
    "attention": str,
    "replica_choice": str,
    "method": str,
    "seed": int,
    "predicted": dict,
}

_OPTIONAL: dict[str, type] = {
    "objective": float,
    "bound": float,
    "profile_fingerprint": str,
    "model_fingerprint": str,
}
