"""A profile of some of a sample's tokens, each as often as it is named."""

import numpy as np
from numpy.typing import NDArray

from specmoe.profiler.routing_profile import RoutingProfile


def profile_of_rows(profile: RoutingProfile, rows: NDArray[np.int64]) -> RoutingProfile:
    """The profile of these rows of the sample, in this order and as often as they are named."""
    chosen = profile.require_sample("choosing tokens").rows(rows)
    return RoutingProfile(
        layer_ids=profile.layer_ids,
        expert_counts=chosen.expert_counts(profile.num_logical_experts),
        num_logical_experts=profile.num_logical_experts,
        top_k=profile.top_k,
        num_tokens=chosen.num_tokens,
        vocab_size=profile.vocab_size,
        num_expert_groups=profile.num_expert_groups,
        sample=chosen,
        model_fingerprint=profile.model_fingerprint,
        source=profile.source,
    )
