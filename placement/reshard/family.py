"""One row of the family table: how a model type names the tensors of its mixture-of-experts blocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Of the experts that every token uses.
SHARED = ("shared_expert.", "shared_experts.", "shared_expert_gate.", "shared_mlp.")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One way to lay out MoE blocks; names are relative to the block, `{decoder prefix}layers.{N}.{block}.`.

    block: empty where experts and router lie in the decoder layer itself. routers: tensors with one entry per expert
    along the given axis; the first is the router weight [E, H], whose presence makes a layer a MoE layer.
    expert_numbers: integer tensors whose values are experts. scores_more_than_experts: router tensors go on after the E
    experts, for what computes nothing; those entries stay where they are. parameters: each parameter of transformers'
    experts module and the per-expert projections `{experts}.{e}.{projection}.weight` whose rows it concatenates. fused:
    source tensors [E, …] that already hold all experts, and the parameter, or the `{projection}.weight`, that each is;
    suffixes such as "_bias" or "_scales" follow both names. hidden_axes: where fused weights may lie transposed on
    disk, which axis of an expert's matrix has the hidden size in transformers. unrouted: prefixes of what every token
    uses. memory_block: the block's name in transformers' module tree; memory_prefixes: decoder prefixes that are others
    there.
    """

    name: str
    model_types: tuple[str, ...]
    block: str
    memory_block: str
    routers: Mapping[str, int]
    expert_numbers: tuple[str, ...] = ()
    scores_more_than_experts: bool = False
    experts: str = "experts"
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fused: Mapping[str, str] = field(default_factory=dict)
    hidden_axes: Mapping[str, int] = field(default_factory=dict)
    unrouted: tuple[str, ...] = SHARED
    memory_prefixes: Mapping[str, str] = field(
        default_factory=lambda: {"language_model.model.": "model.language_model."}
    )

    @property
    def router_weight(self) -> str:
        return next(iter(self.routers))

    @property
    def projection_weights(self) -> tuple[str, ...]:
        """Labels of an expert's plain weights."""
        return tuple(f"{name}.weight" for projections in self.parameters.values() for name in projections)

    @property
    def block_prefix(self) -> str:
        """What the names of a block's tensors start with, after the layer's number."""
        return f"{self.block}." if self.block else ""

    @property
    def memory_experts(self) -> str:
        """The experts module's name in transformers' module tree, within its decoder layer."""
        return f"{self.memory_block}.experts" if self.memory_block else "experts"
