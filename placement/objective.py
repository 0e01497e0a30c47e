"""The objective that plans are compared by: remote copies per token, dearer where they cross to another node.

    objective = remote_copies_per_token + (intra_node_gb_per_s / inter_node_gb_per_s - 1) * internode_copies_per_token

A hierarchical dispatch sends one row per (token, other node) over the slow link, and one per (token, rank) over fast
ones; the unit is one row between two ranks of a node. Without both bandwidths, or with a link between nodes that is
not slower, all copies cost the same.
"""

from specmoe.placement.metrics import PlacementMetrics
from specmoe.placement.topology import Topology


def internode_surcharge(topology: Topology) -> float:
    """What a copy to another node costs beyond one within a node, in rows within a node; at least 0."""
    fast, slow = topology.intra_node_gb_per_s, topology.inter_node_gb_per_s
    if not topology.has_slow_links_between_nodes or fast is None or slow is None:
        return 0.0
    return fast / slow - 1.0


def objective_of(metrics: PlacementMetrics, topology: Topology) -> float:
    """The objective of one layer's metrics, or of their means over layers."""
    return metrics.remote_copies_per_token + internode_surcharge(topology) * metrics.internode_copies_per_token
