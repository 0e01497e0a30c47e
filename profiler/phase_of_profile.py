"""Take one phase out of a profile: what a prefill instance, or a decode instance, would route."""

from dataclasses import replace

from specmoe.errors import ArtifactError, UsageError
from specmoe.profiler.phase_counts import DECODE, PHASES, PREFILL, Phase
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.token_count_table import subtract_token_counts


def profile_of_phase(profile: RoutingProfile, phase: Phase) -> RoutingProfile:
    """The profile of `phase` alone; `all` is the profile itself.

    Raises `ArtifactError` where the profile does not keep prefill and decode apart.
    """
    if phase not in PHASES:
        raise UsageError(f"phase is {phase!r}, one of {', '.join(PHASES)} was expected")
    if phase == "all":
        return profile
    decode, sample = profile.decode, profile.sample
    if decode is None or sample is None or sample.phases is None or profile.token_counts is None:
        raise ArtifactError(
            f"the {phase} phase alone needs a profile that keeps prefill and decode apart; "
            "make one with `specmoe profile --generate N`"
        )
    own = replace(
        profile,
        domains=None,
        decode=None,
        sample=sample.rows(sample.phases == {"prefill": PREFILL}.get(phase, DECODE)),
        source=f"{profile.source}, {phase} alone" if profile.source else f"{phase} alone",
    )
    if phase == "decode":
        return replace(
            own,
            num_tokens=decode.num_tokens,
            expert_counts=decode.expert_counts,
            coactivation_counts=decode.coactivation_counts,
            transition_counts=decode.transition_counts,
            token_counts=decode.token_counts,
            domains=decode.domains,
        )
    whole, generated = profile.domains, decode.domains
    assert profile.coactivation_counts is not None, "whoever counts decode tokens counts pairs"
    assert profile.transition_counts is not None, "whoever counts decode tokens counts pairs"
    return replace(
        own,
        num_tokens=profile.num_tokens - decode.num_tokens,
        expert_counts=profile.expert_counts - decode.expert_counts,
        coactivation_counts=profile.coactivation_counts - decode.coactivation_counts,
        transition_counts=profile.transition_counts - decode.transition_counts,
        token_counts=subtract_token_counts(profile.token_counts, decode.token_counts),
        domains=None if whole is None or generated is None else whole.without(generated),
    )
