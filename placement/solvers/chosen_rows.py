"""A profile of some of a sample's tokens, each as often as it is named."""

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


def rows_of(sample: RoutingSample, rows: NDArray[np.int64]) -> RoutingSample:
    """A sample of these rows, in this order."""
    arrays: dict[str, Any] = {field.name: getattr(sample, field.name) for field in fields(sample)}
    chosen: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
    return RoutingSample(**chosen)


def profile_of_rows(profile: RoutingProfile, rows: NDArray[np.int64]) -> RoutingProfile:
    """The profile of these rows of the sample, in this order and as often as they are named."""
    chosen = rows_of(profile.require_sample("choosing tokens"), rows)
    return RoutingProfile(
        layer_ids=profile.layer_ids,
        expert_counts=pairs_of_experts(chosen, profile.num_logical_experts),
        num_logical_experts=profile.num_logical_experts,
        top_k=profile.top_k,
        num_tokens=chosen.num_tokens,
        vocab_size=profile.vocab_size,
        num_expert_groups=profile.num_expert_groups,
        sample=chosen,
        model_fingerprint=profile.model_fingerprint,
        source=profile.source,
    )


def pairs_of_experts(sample: RoutingSample, num_logical_experts: int) -> NDArray[np.int64]:
    """int64 [L, E]: how many of the sample's tokens use each expert."""
    counts = [np.bincount(ids.ravel(), minlength=num_logical_experts) for ids in sample.expert_ids.swapaxes(0, 1)]
    return np.stack(counts).astype(np.int64)
