"""Send a token to another node once: to a relay there, which passes it on to the ranks of its node and adds up.

A plan that was told of slower links between nodes counts one row per (token, other node) on them. Rows go that way in
two exchanges: first from a token's process to one process of each node that serves it, then, with the rows that stayed
on their node, to the ranks that hold the experts; the sums come back in the opposite order.

The second exchange has a price that does not depend on the rows. So relays serve passes of many tokens alone: at a
pass's first MoE layer every process is told how many tokens all have together, and all draw the same conclusion.
"""

from dataclasses import dataclass, replace

import torch

from specmoe.kernels.assign.assign import assign_slots
from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.routing_tables import RoutingTables
from specmoe.placement.plan import PlacementPlan
from specmoe.runtime.exchange import ReceivedRows
from specmoe.runtime.process_nodes import nodes_with_slow_links
from specmoe.runtime.workers import Workers

# Tokens of all processes together from which on a pass goes by relays: measured, prefills gained and decode steps lost.
FEWEST_TOKENS = 256


@dataclass(kw_only=True)
class Relays:
    """One for all layers of a model. relay_of_node: int32 [nodes], the rank to which this process sends what a node
    serves; its own for its node. fewest_tokens must be the same on all processes. in_use: whether the running pass goes
    by relays."""

    relay_of_node: torch.Tensor
    fewest_tokens: int = FEWEST_TOKENS
    in_use: bool = False

    def begin_pass(self, num_tokens: int) -> None:
        """Note that a pass of `num_tokens` tokens, those of all processes together, begins."""
        self.in_use = num_tokens >= self.fewest_tokens

    @classmethod
    def of_plan(cls, plan: PlacementPlan, workers: Workers) -> "Relays | None":
        """None where rows go straight: links between nodes are no slower, or a process has ranks of two nodes."""
        node_of_process = nodes_with_slow_links(plan, workers)
        if node_of_process is None:
            return None
        own_node = node_of_process[workers.process]
        place = node_of_process[: workers.process].count(own_node)
        relays = []
        for node in range(plan.topology.num_nodes):
            processes = [process for process, other in enumerate(node_of_process) if other == node]
            chosen = workers.process if node == own_node else processes[place % len(processes)]
            relays.append(chosen * workers.ranks_per_process)
        return cls(relay_of_node=torch.tensor(relays, dtype=torch.int32, device=workers.device))

    def by_node(
        self, pair_slot: torch.Tensor, weights: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables
    ) -> Assignment:
        """One row per token and node that serves it, to that node's relay; arguments as of `assign_slots`."""
        node_of_slot = tables.node_of_rank[tables.rank_of_slot.long()].long()
        return assign_slots(
            pair_slot, weights, home_rank, replace(tables, rank_of_slot=self.relay_of_node[node_of_slot])
        )

    def within_node(self, received: ReceivedRows, own_rank: int, tables: RoutingTables) -> Assignment:
        """The rows in which a relay, of rank `own_rank`, passes on what it received to the ranks of its node."""
        home_rank = torch.full((len(received.hidden),), own_rank, dtype=torch.int32, device=received.hidden.device)
        return assign_slots(received.slots, received.weights, home_rank, tables)
