"""One MoE layer of the running plan: assign, dispatch, exchange, expert products, exchange back, combine."""

import torch

from specmoe.kernels.assign.assign import assign, assign_slots, group_by_slot
from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.assign.reference import choose_slots
from specmoe.kernels.combine.combine import combine
from specmoe.kernels.dispatch.dispatch import dispatch
from specmoe.kernels.routing_tables import RoutingTables
from specmoe.runtime.adopt_experts import may_choose_none, weighs_inputs
from specmoe.runtime.counters import Counters
from specmoe.runtime.exchange import Delivery, Exchange, ReceivedRows
from specmoe.runtime.homes import BatchHomes
from specmoe.runtime.layer_capacity import LayerCapacity
from specmoe.runtime.relays import Relays
from specmoe.runtime.slot_product import slot_product
from specmoe.runtime.static_path import PartialSums, StaticPath
from specmoe.runtime.token_homes import TokenHomes


class MoeLayer:
    """Runs the plan's row `row` for this process's tokens and this process's slots; every call is collective.

    experts: the transformers experts module, its parameters holding this process's slots in dimension 0.
    first_slot, num_slots: those slots in the plan's numbering.
    """

    def __init__(
        self,
        row: int,
        tables: RoutingTables,
        experts: torch.nn.Module,
        exchange: Exchange,
        homes: BatchHomes | TokenHomes,
        counters: Counters,
        capacity: LayerCapacity | None,
        static: StaticPath | None,
        relays: Relays | None,
    ) -> None:
        self.row = row
        self._tables = tables
        self._experts = experts
        self._weighs_inputs = weighs_inputs(experts)
        self._may_choose_none = may_choose_none(experts)
        self._exchange = exchange
        self.homes = homes
        self._counters = counters
        self._capacity = capacity
        self._static = static
        self._relays = relays
        own = exchange.workers.own_ranks
        offsets = tables.slot_offsets.tolist()
        self._first_slot = offsets[own.start]
        self._num_slots = offsets[own.stop] - offsets[own.start]

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """[T, H]: the weighted sum of each token's experts, and zeros for padding, which goes no further than here.

        hidden: floating [T, H]; top_k_index: integer [T, K], logical experts, or -1 for none (without a capacity);
        top_k_weights: floating [T, K].
        """
        num_rows, tokens = hidden.shape[0], self.homes.tokens
        index, weights = tokens.only(top_k_index), tokens.only(top_k_weights)
        out = self._of_tokens(tokens.only(hidden), index, weights, self.homes.of_tokens(self.row, num_rows))
        return tokens.spread(out, num_rows)

    def _of_tokens(
        self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor, home_rank: torch.Tensor
    ) -> torch.Tensor:
        weights = top_k_weights.contiguous()
        assignment = self._assign(top_k_index.contiguous(), weights, home_rank)
        hidden = hidden.contiguous()
        if self._static is not None:
            out = self._static.run(hidden, assignment, self.row, self._partial_sums, active=True)
            if isinstance(out, torch.Tensor):
                return out
        way, delivery = self._deliver(hidden, assignment, weights, home_rank, active=True)
        return self._run(way, delivery, self._serve)

    def take_part(self, dtype: torch.dtype, hidden_size: int, top_k: int) -> bool:
        """Serve the other processes' rows with no tokens of one's own; False when nobody had any work."""
        device = self._tables.device
        nothing = torch.zeros((0, top_k), dtype=torch.int64, device=device)
        no_homes = torch.zeros(0, dtype=torch.int32, device=device)
        assignment = assign(nothing, nothing.float(), no_homes, self._tables)
        hidden = torch.zeros((0, hidden_size), dtype=dtype, device=device)
        if self._static is not None:
            out = self._static.run(hidden, assignment, self.row, self._partial_sums, active=False)
            if not isinstance(out, str) or out == "idle":
                return out != "idle"
        way, delivery = self._deliver(hidden, assignment, nothing.float(), no_homes, active=False)
        if delivery.anyone_active:
            self._run(way, delivery, self._serve)
        return delivery.anyone_active

    def _deliver(
        self,
        hidden: torch.Tensor,
        straight: Assignment,
        weights: torch.Tensor,
        home_rank: torch.Tensor,
        *,
        active: bool,
    ) -> tuple[Assignment, Delivery]:
        """The rows in which this pass goes, straight or by relays, and what came of the other processes' rows.

        A pass's first layer offers both, and is told what decides.
        """
        relays = self._relays
        if relays is None or (self.row > 0 and not relays.in_use):
            return straight, self._exchange.deliver(hidden, straight, self.row, active=active)
        by_node = relays.by_node(straight.pair_slot, weights, home_rank, self._tables)
        if self.row > 0:
            return by_node, self._exchange.deliver(hidden, by_node, self.row, active=active)
        ways = [straight, by_node]
        told = self._exchange.announce(ways, self.row, active=active)
        relays.begin_pass(told.num_tokens)
        chosen = int(relays.in_use)
        return ways[chosen], self._exchange.send(hidden, ways[chosen], told, chosen, self.row)

    def _assign(self, index: torch.Tensor, weights: torch.Tensor, home_rank: torch.Tensor) -> Assignment:
        rerouted = None
        if self._capacity is not None and self._capacity.forward_pass.is_bounded:
            priority = self._capacity.forward_pass.priority
            own = None if priority is None else self.homes.own_of(priority)
            assignment, rerouted = self._capacity.assign(
                index, weights, home_rank, own, self._tables, self.homes.tokens
            )
        elif self._may_choose_none:
            slots = choose_slots(index.long(), home_rank.long(), self._tables)
            assignment = assign_slots(slots.to(torch.int32), weights, home_rank, self._tables)
        else:
            assignment = assign(index, weights, home_rank, self._tables)
        self._counters.add(self.row, assignment, index, home_rank, self._tables, rerouted)
        return assignment

    def _run(self, way: Assignment, delivery: Delivery, serve: PartialSums) -> torch.Tensor:
        partial = serve(delivery.received, delivery.traffic.pairs)
        returned = self._exchange.send_back(partial, delivery.traffic, self.row)
        return combine(returned, way.token_rows, None)

    def _serve(self, received: ReceivedRows, num_pairs: int) -> torch.Tensor:
        """[N, H]: each received row's sum over the experts here, and with relays over those of this node."""
        if self._relays is None or not self._relays.in_use:
            return self._partial_sums(received, num_pairs)
        within = self._relays.within_node(received, self._exchange.workers.own_ranks.start, self._tables)
        delivery = self._exchange.deliver(received.hidden, within, self.row, active=True)
        return self._run(within, delivery, self._partial_sums)

    def _partial_sums(self, received: ReceivedRows, num_pairs: int) -> torch.Tensor:
        """[N, H]: each received row's weighted sum over the slots that it is for."""
        groups = group_by_slot(received.slots, self._first_slot, self._num_slots)
        expanded = dispatch(received.hidden, groups.positions, num_pairs)
        if not self._weighs_inputs:
            products = slot_product(self._experts, expanded, groups.slot_offsets)
            return combine(products, groups.positions, received.weights)
        weights = dispatch(received.weights.view(-1, 1), groups.positions.view(-1, 1), num_pairs)
        products = slot_product(self._experts, expanded * weights.to(expanded.dtype), groups.slot_offsets)
        return combine(products, groups.positions, None)
