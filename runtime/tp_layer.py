"""A decoder layer under `tp` attention: heads split, then every token on its home process until the layer ends.

x = stream + scatter(sum of the processes' attention parts);  stream = gather(x + mlp(norm(x)))
"""

from typing import Any

import torch

from specmoe.errors import CheckpointError
from specmoe.placement.plan import PlacementPlan
from specmoe.runtime.attention_split import split_attention
from specmoe.runtime.process_nodes import nodes_with_slow_links
from specmoe.runtime.shuffle import Shuffle
from specmoe.runtime.token_homes import TokenHomes
from specmoe.runtime.workers import Workers

PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


def split_heads(model: Any, workers: Workers) -> None:
    """Give every decoder layer of `model`, which is on the meta device, this process's share of the heads.

    Raises `CheckpointError` or `UsageError`, naming the reason, where the model cannot be split so.
    """
    for layer in model.get_decoder().layers:
        parts = {name for name, _ in layer.named_children()}
        if parts != PARTS:
            raise CheckpointError(
                f"{type(layer).__name__} has the parts {sorted(parts)}, tp attention needs {sorted(PARTS)}; "
                "solve with --attention dp"
            )
        split_attention(layer.self_attn, model.config.get_text_config(), workers)


def shuffle_tokens(model: Any, workers: Workers, homes: TokenHomes, plan: PlacementPlan) -> Shuffle:
    """Have every decoder layer of a model that `split_heads` split send tokens to their homes."""
    shuffle = Shuffle(workers, nodes_with_slow_links(plan, workers))
    row_of = {layer_id: row for row, layer_id in enumerate(plan.layer_ids.tolist())}
    for layer_id, layer in enumerate(model.get_decoder().layers):
        # In place of the class's forward, whose arguments it takes.
        object.__setattr__(layer, "forward", TpForward(layer, row_of.get(layer_id), homes, shuffle))
    return shuffle


class TpForward:
    """The forward of one decoder layer; row: the plan's row, None for a dense layer."""

    def __init__(self, layer: Any, row: int | None, homes: TokenHomes, shuffle: Shuffle) -> None:
        self._layer = layer
        self._row = row
        self._homes = homes
        self._shuffle = shuffle

    def __call__(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """[B, S, H] in and out, the same on all processes; the arguments are the attention's."""
        layer, width, batch = self._layer, hidden_states.shape[-1], self._homes.batch
        partial = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **arguments)[0]
        # Padding is not dealt out: it leaves the layer as zeros.
        stream = batch.only(hidden_states.reshape(-1, width))
        slices = self._homes.split(self._row, stream.shape[0])
        own = stream[slices.own] + self._shuffle.reduce_scatter(batch.only(partial.reshape(-1, width)), slices)
        out = layer.mlp(layer.post_attention_layernorm(own)[None])
        # Some families' MoE blocks return the router's scores too.
        out = out[0] if isinstance(out, tuple) else out
        whole = self._shuffle.all_gather(own + out.view(-1, width), slices)
        return batch.spread(whole, hidden_states.numel() // width).view_as(hidden_states)
