"""A profile from a source that counted experts and kept no token."""

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.model_facts import ModelFacts
from specmoe.profiler.routing_profile import RoutingProfile


def profile_of_counts(
    counts: Array, layer_ids: Array, facts: ModelFacts, source: str, *, coactivation_counts: Array | None = None
) -> RoutingProfile:
    """The profile of `counts` whole numbers [L, E] of the decoder layers `layer_ids` [L].

    Layers without a single count are dense ones, and left out. coactivation_counts: [L, E, E] where the source has it.
    """
    top_k = facts.require("top_k", source)
    counts = np.asarray(counts, dtype=np.int64)
    if counts.min(initial=0) < 0:
        raise ArtifactError(f"{source} has negative counts; they have overflowed or the file is damaged")
    routed = np.flatnonzero(counts.sum(axis=1))
    if len(routed) == 0:
        raise ArtifactError(f"{source} counted no token; record some traffic first")
    if facts.num_experts is not None and facts.num_experts != counts.shape[1]:
        raise ArtifactError(f"{source} has {counts.shape[1]} experts, the model has {facts.num_experts}")
    pairs: NDArray[np.int64] | None = None
    if coactivation_counts is not None:
        pairs = np.asarray(coactivation_counts, dtype=np.int64)[routed]
    return RoutingProfile(
        layer_ids=np.asarray(layer_ids, dtype=np.int32)[routed],
        expert_counts=counts[routed],
        coactivation_counts=pairs,
        num_logical_experts=counts.shape[1],
        top_k=top_k,
        num_tokens=int(counts[routed].sum(axis=1).max()) // top_k,
        vocab_size=facts.vocab_size,
        model_fingerprint=facts.fingerprint,
        source=source,
    )
