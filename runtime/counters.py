"""Count what each MoE layer sends, to be held against `evaluate`'s prediction."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.routing_tables import RoutingTables

# The single numbers of `LayerCounts`.
_SUMS = 7


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """What this process's tokens did in one MoE layer since the counters were last reset.

    remote_copies: (token, rank) pairs with rank != home, each one hidden state out and one back. local_pairs: (token,
    expert) pairs served on the token's home rank. wire_rows: the remote copies that left this process; by
    way of relays those of one token to one node are one row between the nodes. Under a capacity policy, dropped_pairs
    were not served and rerouted_pairs by another expert than the router's; pairs are all that were served.
    """

    layer_id: int
    tokens: int
    pairs: int
    local_pairs: int
    remote_copies: int
    wire_rows: int
    dropped_pairs: int
    rerouted_pairs: int
    pairs_of_rank: tuple[int, ...]


class Counters:
    """Running sums on the device, int64 [L, 7 + R]; reading them waits for the device, counting does not."""

    def __init__(self, layer_ids: list[int], own_ranks: range, ep_size: int, device: torch.device) -> None:
        self._layer_ids = layer_ids
        self._own_ranks = own_ranks
        self._ranks = torch.arange(ep_size, device=device)
        self._sums = torch.zeros((len(layer_ids), _SUMS + ep_size), dtype=torch.int64, device=device)

    def add(
        self,
        row: int,
        assignment: Assignment,
        chosen: torch.Tensor,
        home_rank: torch.Tensor,
        tables: RoutingTables,
        rerouted: torch.Tensor | None,
    ) -> None:
        """Count one forward pass through the plan's row `row`.

        chosen: integer [T, K], the router's experts, -1 for none; home_rank: int32 [T]; rerouted: bool [T, K] or None.
        """
        changed = torch.zeros(chosen.shape, dtype=torch.bool, device=chosen.device) if rerouted is None else rerouted
        if chosen.device.type == "cpu":
            _count(
                self._sums[row].numpy(),
                chosen.numpy(),
                assignment.pair_slot.numpy(),
                assignment.token_rows.numpy(),
                tables.rank_of_slot.numpy(),
                home_rank.numpy(),
                self._own_ranks.start,
                self._own_ranks.stop,
                changed.numpy(),
            )
            return
        kept = assignment.pair_slot >= 0
        served_on = tables.rank_of_slot[assignment.pair_slot.clamp(min=0).long()]
        is_local = served_on == home_rank[:, None]
        is_row = assignment.token_rows >= 0
        is_own = (served_on >= self._own_ranks.start) & (served_on < self._own_ranks.stop)
        # Filled in on the device: a value copied from the host would break the capture of a CUDA graph.
        tokens = self._sums.new_full((), home_rank.shape[0])
        counted = [kept, kept & is_local, is_row & ~is_local, is_row & ~is_own, (chosen >= 0) & ~kept, changed]
        of_rank = (served_on[:, :, None] == self._ranks) & kept[:, :, None]
        sums = torch.stack([tokens, *[mask.sum() for mask in counted]])
        self._sums[row] += torch.cat([sums, of_rank.sum(dim=(0, 1))])

    def read(self) -> list[LayerCounts]:
        """The counts of every MoE layer, in order."""
        names = [field.name for field in fields(LayerCounts)][1 : 1 + _SUMS]
        return [
            LayerCounts(
                layer_id=layer_id,
                **dict(zip(names, sums[:_SUMS], strict=True)),
                pairs_of_rank=tuple(sums[_SUMS:]),
            )
            for layer_id, sums in zip(self._layer_ids, self._sums.tolist(), strict=True)
        ]

    def reset(self) -> None:
        """Start again from zero."""
        self._sums.zero_()


@compiled
def _count(
    sums: NDArray[np.int64],
    chosen: NDArray[np.int64],
    pair_slot: NDArray[np.int32],
    token_rows: NDArray[np.int32],
    rank_of_slot: NDArray[np.int32],
    home_rank: NDArray[np.int32],
    first_own_rank: int,
    end_of_own_ranks: int,
    rerouted: NDArray[np.bool_],
) -> None:
    """Add to one layer's sums, int64 [7 + R], on the CPU."""
    sums[0] += chosen.shape[0]
    for token in range(chosen.shape[0]):
        for choice in range(chosen.shape[1]):
            slot = pair_slot[token, choice]
            sums[6] += rerouted[token, choice]
            if slot < 0:
                sums[5] += chosen[token, choice] >= 0
                continue
            rank = rank_of_slot[slot]
            is_local = rank == home_rank[token]
            is_row = token_rows[token, choice] >= 0
            sums[1] += 1
            sums[2] += is_local
            sums[3] += is_row and not is_local
            sums[4] += is_row and not first_own_rank <= rank < end_of_own_ranks
            sums[_SUMS + rank] += 1
