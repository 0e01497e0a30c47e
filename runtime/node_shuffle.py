"""Reduce-scatter and all-gather in two all-to-alls each, so that a token's row crosses to every other node once.

reduce-scatter: a node's processes send their rows of a token whose home is on another node to its relay on theirs,
whose sum then crosses. all-gather: the row crosses to the relays, which hand it on. What stays on a node goes with the
rows that cross, while its links would have nothing to do.
Shape suffixes: T tokens, n own tokens, s tokens that this process relays, W processes, N nodes, H hidden size.
"""

import torch

from specmoe.runtime.node_routes import NodeRoutes
from specmoe.runtime.row_exchange import RowExchange
from specmoe.runtime.token_homes import TokenSlices


class NodeShuffle:
    """Both send `(W-1) T` rows over all processes, as many as flat ones, but only `(N-1) T` of them between nodes.

    node_of_process: the node of each process, those of a node one after the other.
    """

    def __init__(self, rows: RowExchange, node_of_process: list[int]) -> None:
        self._rows = rows
        self._nodes = node_of_process
        self._own = rows.workers.process
        self._processes = range(rows.workers.world_size)

    def reduce_scatter(self, partial: torch.Tensor, slices: TokenSlices) -> torch.Tensor:
        """As `Shuffle.reduce_scatter`; the sums that cross are rounded to the dtype of `partial`."""
        routes, own = NodeRoutes(slices.sizes, self._nodes), len(slices.own)
        members, native = routes.members(self._own), routes.native(self._own)
        sums = self._sum_foreign(partial, slices, routes)
        at_home = partial[slices.order[native.start : native.stop]]
        # By home, as the tokens are in the order.
        going = [
            slices.sizes[home] if home in members else len(routes.crossing(home, self._own)) for home in self._processes
        ]
        coming = [
            own if process in members else len(routes.crossing(self._own, process)) for process in self._processes
        ]
        start = sum(going[: members.start])
        received = self._rows.all_to_all(torch.cat([sums[:start], at_home, sums[start:]]), going, coming)
        # This process's tokens in their order, once from each process of its node and once from each other node.
        num_parts = len(members) + len(set(self._nodes)) - 1
        return _float_sum(received.view(num_parts, own, partial.shape[1]))

    def all_gather(self, own: torch.Tensor, slices: TokenSlices) -> torch.Tensor:
        """As `Shuffle.all_gather`."""
        routes = NodeRoutes(slices.sizes, self._nodes)
        members, native = routes.members(self._own), routes.native(self._own)
        at_home, relayed = self._send_home_rows(own, slices, routes)
        foreign = self._rows.all_to_all(
            relayed.repeat(len(members), 1),
            [len(relayed) if process in members else 0 for process in self._processes],
            [len(routes.relayed(process)) if process in members else 0 for process in self._processes],
        )
        whole = torch.empty((len(slices.order), own.shape[1]), dtype=own.dtype, device=own.device)
        whole[slices.order[native.start : native.stop]] = at_home
        whole[_without(slices.order, native)] = foreign
        return whole

    def _sum_foreign(self, partial: torch.Tensor, slices: TokenSlices, routes: NodeRoutes) -> torch.Tensor:
        """[s, H]: of the tokens that this process relays, the sum over the processes of its node."""
        members = routes.members(self._own)
        shares = [len(routes.relayed(process)) if process in members else 0 for process in self._processes]
        own = shares[self._own]
        foreign = partial[_without(slices.order, routes.native(self._own))]
        coming = [own if process in members else 0 for process in self._processes]
        received = self._rows.all_to_all(foreign, shares, coming)
        return _float_sum(received.view(len(members), own, partial.shape[1]))

    def _send_home_rows(
        self, own: torch.Tensor, slices: TokenSlices, routes: NodeRoutes
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From their homes: the rows of the tokens at home on this node, and of those that this process relays."""
        members = routes.members(self._own)
        going = [
            range(len(own)) if process in members else routes.crossing(self._own, process)
            for process in self._processes
        ]
        coming = [
            slices.sizes[home] if home in members else len(routes.crossing(home, self._own)) for home in self._processes
        ]
        received = self._rows.all_to_all(
            torch.cat([own[places.start : places.stop] for places in going]), [len(places) for places in going], coming
        )
        # By home, as they are in the order.
        start = sum(coming[: members.start])
        at_home = range(start, start + len(routes.native(self._own)))
        return received[at_home.start : at_home.stop], _without(received, at_home)


def _without(rows: torch.Tensor, places: range) -> torch.Tensor:
    """All rows but those of some successive places."""
    return torch.cat([rows[: places.start], rows[places.stop :]])


def _float_sum(rows: torch.Tensor) -> torch.Tensor:
    """The sum over the first dimension, in float32 at least, as the dtype of `rows`."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).sum(dim=0).to(rows.dtype)
