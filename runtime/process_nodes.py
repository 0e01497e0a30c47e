"""On which node each process runs, where a plan says that links between nodes are slower than those within them."""

from specmoe.placement.plan import PlacementPlan
from specmoe.runtime.workers import Workers


def nodes_with_slow_links(plan: PlacementPlan, workers: Workers) -> list[int] | None:
    """The node of each process; None where that changes nothing: there is one process alone, links between nodes are no
    slower, or a process has ranks of two nodes."""
    nodes = plan.topology.node_of_rank.tolist()
    per_process = workers.ranks_per_process
    node_of_process = [nodes[first] for first in range(0, len(nodes), per_process)]
    straddles = any(nodes[rank] != node_of_process[rank // per_process] for rank in range(len(nodes)))
    if workers.world_size == 1 or straddles or not plan.topology.has_slow_links_between_nodes:
        return None
    return node_of_process
