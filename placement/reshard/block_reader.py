"""Read one MoE block: sort its tensors by the family's row and check them against each other.

What the row does not explain is refused. Every expert of a layer must have the same tensors with the same dtypes and
shapes.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from specmoe.checkpoint import Checkpoint
from specmoe.errors import CheckpointError
from specmoe.placement.reshard.expert_numbers import INTEGER_DTYPES
from specmoe.placement.reshard.family import Family
from specmoe.placement.reshard.moe_model import ByteRange, ExpertPiece, MoeLayer
from specmoe.routing_config import num_experts
from specmoe.safetensors_header import TensorEntry

_EXPERT_NAME = r"\.(?P<expert>0|[1-9][0-9]{0,5})\.(?P<projection>\w+)\.(?P<suffix>.+)"


class BlockReader:
    """Reads the block of a checkpoint whose tensors start with `prefix`; it has the family's router weight."""

    def __init__(self, checkpoint: Checkpoint, family: Family, prefix: str, layer_id: int) -> None:
        self.checkpoint = checkpoint
        self.layer_id = layer_id
        self.family = family
        self.prefix = prefix
        self.expert_name = re.compile(re.escape(family.experts) + _EXPERT_NAME)
        router = self._entry(family.router_weight)
        if len(router.shape) != 2 or router.shape[0] < 1:
            raise self._error(
                f"{family.router_weight} has the shape {list(router.shape)}, [experts, hidden] was expected"
            )
        self.num_experts = self._count_experts(router.shape[0])

    def read(self, names: Sequence[str]) -> MoeLayer:
        """Sort `names` (relative to the block); raises `CheckpointError` for what is unknown, missing or uneven."""
        per_expert: dict[str, dict[int, str]] = defaultdict(dict)
        pieces: dict[str, ExpertPiece] = {}
        routers: dict[str, int] = {}
        expert_numbers: list[str] = []
        for name in names:
            match = self.expert_name.fullmatch(name)
            if name in self.family.routers:
                routers[self.prefix + name] = self._check_router(name)
            elif name in self.family.expert_numbers:
                expert_numbers.append(self._check_numbers(name))
            elif match and match["projection"] in self._projections():
                if self.family.scores_more_than_experts and int(match["expert"]) >= self.num_experts:
                    continue  # of something that computes nothing
                per_expert[f"{match['projection']}.{match['suffix']}"][int(match["expert"])] = name
            elif label := self._fused_label(name):
                pieces[label] = self._fused_piece(label, name)
            elif not name.startswith(self.family.unrouted):
                raise self._error(f"{name} is not known to the family {self.family.name!r} as expert, router or shared")
        pieces |= {label: self._stacked_piece(label, members) for label, members in per_expert.items()}
        self._check_complete(pieces)
        return MoeLayer(
            layer_id=self.layer_id,
            prefix=self.prefix,
            num_experts=self.num_experts,
            pieces=dict(sorted(pieces.items())),
            routers=routers,
            expert_numbers=tuple(expert_numbers),
        )

    def _count_experts(self, num_scores: int) -> int:
        """E: as many as the router scores, or fewer, as the configuration says, where the family scores more."""
        if not self.family.scores_more_than_experts:
            return num_scores
        stated = num_experts(self.checkpoint.config)
        if stated is None or not 1 <= stated <= num_scores:
            raise self._error(
                f"the configuration states {stated} experts, 1 to the router's {num_scores} were expected"
            )
        return stated

    def _projections(self) -> Iterator[str]:
        return (projection for projections in self.family.parameters.values() for projection in projections)

    def _fused_label(self, name: str) -> str | None:
        """The experts module's name for a fused tensor: `experts.down_proj_bias` -> `down_proj_bias`."""
        for source, parameter in self.family.fused.items():
            if name == source or (name.startswith(f"{source}_") and "." not in name.removeprefix(source)):
                return parameter + name.removeprefix(source)
        return None

    def _check_router(self, name: str) -> int:
        axis, shape = self.family.routers[name], self._entry(name).shape
        expected = self._entry(self.family.router_weight).shape[0]
        if len(shape) <= axis or shape[axis] != expected or any(size != 1 for size in shape[:axis]):
            raise self._error(f"{name} has the shape {list(shape)}, {expected} experts on axis {axis} were expected")
        return axis

    def _check_numbers(self, name: str) -> str:
        dtype = self._entry(name).dtype
        if dtype not in INTEGER_DTYPES:
            raise self._error(f"{name} is {dtype}, expert numbers of one of {sorted(INTEGER_DTYPES)} were expected")
        return self.prefix + name

    def _fused_piece(self, label: str, name: str) -> ExpertPiece:
        entry = self._entry(name)
        if not entry.shape or entry.shape[0] != self.num_experts or entry.num_bytes % self.num_experts:
            raise self._error(
                f"{name} has the shape {list(entry.shape)}, {self.num_experts} experts first were expected"
            )
        step = entry.num_bytes // self.num_experts
        return ExpertPiece(
            label=label,
            dtype=entry.dtype,
            shape=entry.shape[1:],
            ranges=tuple(ByteRange(self.prefix + name, e * step, (e + 1) * step) for e in range(self.num_experts)),
            is_fused=True,
            is_transposed=self._is_transposed(label, entry.shape[1:]),
        )

    def _is_transposed(self, label: str, shape: Sequence[int]) -> bool:
        """Whether an expert's matrix lies transposed on disk: transformers decides by the same shapes."""
        axis = self.family.hidden_axes.get(label)
        return axis is not None and len(shape) == 2 and shape[axis] != self._entry(self.family.router_weight).shape[1]

    def _stacked_piece(self, label: str, members: Mapping[int, str]) -> ExpertPiece:
        missing = sorted(set(range(self.num_experts)) - set(members))
        surplus = sorted(set(members) - set(range(self.num_experts)))
        if missing:
            raise self._error(f"expert {missing[0]} of {self.num_experts} has no {label}")
        if surplus:
            raise self._error(f"{label} names expert {surplus[0]}, the router knows {self.num_experts}")
        first = self._entry(members[0])
        for name in members.values():
            entry = self._entry(name)
            if (entry.dtype, entry.shape) != (first.dtype, first.shape):
                raise self._error(
                    f"{name} is {entry.dtype} {list(entry.shape)}, expert 0 has {first.dtype} {list(first.shape)} there"
                )
        return ExpertPiece(
            label=label,
            dtype=first.dtype,
            shape=first.shape,
            ranges=tuple(ByteRange(self.prefix + members[e], 0, first.num_bytes) for e in range(self.num_experts)),
            is_fused=False,
        )

    def _check_complete(self, pieces: Mapping[str, ExpertPiece]) -> None:
        """Every parameter of the experts module has at least one tensor, either per expert or fused, not both."""
        if not pieces:
            raise self._error("there is a router but no experts")
        projections = {label.split(".")[0] for label, piece in pieces.items() if not piece.is_fused}
        if not projections:
            bases = self.family.fused.values()
            missing = [base for base in bases if not any(label.startswith(base) for label in pieces)]
        elif any(piece.is_fused for piece in pieces.values()):
            raise self._error("its experts are there both one by one and fused")
        else:
            missing = [projection for projection in self._projections() if projection not in projections]
        if missing:
            raise self._error(f"no {missing[0]} tensor of the experts was found")

    def _entry(self, name: str) -> TensorEntry:
        return self.checkpoint.tensors[self.prefix + name]

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.checkpoint.path}: {self.prefix.removesuffix('.')}: {message}")
