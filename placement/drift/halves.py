"""Two halves of a profile's requests, so that a plan can be solved from one and judged on the other."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import ArtifactError
from specmoe.placement.homes import request_starts
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

_FEWEST_REQUESTS = 8


def split_in_halves(profile: RoutingProfile, seed: int) -> tuple[RoutingProfile, RoutingProfile]:
    """Profiles of two random halves of the sample's requests, each in trace order.

    Raises `ArtifactError` where there are fewer than 8 requests: too few to learn from some and to judge on others.
    """
    sample = profile.require_sample("solving anew")
    starts = request_starts(sample.request_ids, sample.num_tokens)
    if len(starts) < _FEWEST_REQUESTS:
        raise ArtifactError(
            f"the new profile has a sample of {len(starts)} requests; at least {_FEWEST_REQUESTS} are needed to solve "
            "from one half and judge on the other"
        )
    in_first = np.zeros(len(starts), dtype=np.bool_)
    in_first[np.random.default_rng(seed).permutation(len(starts))[: len(starts) // 2]] = True
    of_token = np.repeat(in_first, np.diff(starts, append=sample.num_tokens))
    return _part(profile, sample, of_token), _part(profile, sample, ~of_token)


def _part(profile: RoutingProfile, sample: RoutingSample, chosen: NDArray[np.bool_]) -> RoutingProfile:
    """The profile of the tokens `chosen`, bool [S], with the counts that follow from them alone."""
    part = sample.rows(chosen)
    return replace(
        profile,
        sample=part,
        num_tokens=part.num_tokens,
        expert_counts=part.expert_counts(profile.num_logical_experts),
        coactivation_counts=None,
        transition_counts=None,
        token_counts=None,
        decode=None,
        domains=None,
    )
