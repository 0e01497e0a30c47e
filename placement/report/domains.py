"""A trace's domains: how far each one's routing is from that of the whole trace."""

import numpy as np

from specmoe.placement.domain_metrics import domain_rows
from specmoe.placement.drift.distance import share_distance
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


def has_domains(sample: RoutingSample) -> bool:
    """Whether there are several domains to compare."""
    return sample.domain_ids is not None and len(np.unique(sample.domain_ids)) > 1


def distances_of_domains(profile: RoutingProfile) -> tuple[float, ...]:
    """The share of each domain's (token, expert) pairs that go to other experts than those of the whole sample do, mean
    over layers, in the order of `domain_rows`.
    """
    sample = profile.require_sample("figures by domain")
    counts = [sample.rows(domain.rows).expert_counts(profile.num_logical_experts) for domain in domain_rows(profile)]
    whole = np.sum(counts, axis=0)
    return tuple(float(share_distance(whole, own).mean()) for own in counts)
