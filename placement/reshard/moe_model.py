"""What a MoE checkpoint consists of: layers with experts and routers, as places in the source's tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from specmoe.checkpoint import Checkpoint
from specmoe.placement.reshard.family import Family

FLOAT_DTYPES = ("BF16", "F16", "F32")


class ByteRange(NamedTuple):
    """The bytes `begin` to `end` of one source tensor, counted from the tensor's first byte."""

    tensor: str
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class ExpertPiece:
    """One kind of expert tensor of a layer, as `gate_proj.weight`: `ranges[e]` is expert e's, of `shape` and `dtype`.

    A fused source has all experts in one tensor, cut along its first dimension. is_transposed: `shape` is the other way
    round than in transformers.
    """

    label: str
    dtype: str
    shape: tuple[int, ...]
    ranges: tuple[ByteRange, ...]
    is_fused: bool
    is_transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class MoeLayer:
    """One MoE layer: its block's `prefix` on disk, experts' `pieces` by label, `routers` by name with their axis.

    `expert_numbers` names integer tensors whose values are experts of this layer.
    """

    layer_id: int
    prefix: str
    num_experts: int
    pieces: Mapping[str, ExpertPiece]
    routers: Mapping[str, int]
    expert_numbers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MoeModel:
    """A checkpoint, understood: `layers` by layer number, and `rest`, the names that are neither expert nor router.

    `rest` includes MoE layers past the decoder's last (heads for speculative decoding), which no plan covers.
    """

    checkpoint: Checkpoint
    family: Family
    layers: Mapping[int, MoeLayer]
    rest: frozenset[str]

    @cached_property
    def has_plain_experts(self) -> bool:
        """Whether the experts are plain floating-point weights (and biases), so that their rows may be concatenated."""
        return all(_is_plain(piece) for layer in self.layers.values() for piece in layer.pieces.values())


def _is_plain(piece: ExpertPiece) -> bool:
    suffix_is_plain = piece.is_fused or piece.label.endswith(".weight")
    return piece.dtype in FLOAT_DTYPES and suffix_is_plain
