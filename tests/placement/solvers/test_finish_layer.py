"""Layers end within the load cap where a placement within it can be found."""

import numpy as np
import pytest

from specmoe.placement.solve import solve
from specmoe.placement.solvers import finish_layer
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

NUM_EXPERTS, NUM_TOKENS = 16, 600


def topical_layer(seed: int, heat: float) -> RoutingProfile:
    """One layer of 16 experts, two a token, of four topics; heat: how unevenly experts are used."""
    rng = np.random.default_rng(seed)
    used, topics = rng.normal(size=NUM_EXPERTS) * heat, rng.normal(size=(4, NUM_EXPERTS))
    score = used + topics[rng.integers(4, size=NUM_TOKENS)] + rng.gumbel(size=(NUM_TOKENS, NUM_EXPERTS))
    ids = np.argsort(-score, axis=1)[:, :2].astype(np.uint8)
    return RoutingProfile(
        layer_ids=np.zeros(1, dtype=np.int32),
        expert_counts=np.bincount(ids.ravel(), minlength=NUM_EXPERTS)[None],
        num_logical_experts=NUM_EXPERTS,
        top_k=2,
        num_tokens=NUM_TOKENS,
        vocab_size=50,
        sample=RoutingSample(
            expert_ids=ids[:, None],
            token_ids=rng.integers(0, 50, NUM_TOKENS).astype(np.int32),
            request_ids=np.sort(rng.integers(0, 40, NUM_TOKENS)).astype(np.int32),
        ),
    )


def heaviest(profile: RoutingProfile) -> float:
    plan = solve(profile, 8, attention="tp", extra_slots=1, bound_seconds=0.0, best_effort=True)
    return float(plan.predicted["heaviest_rank"])


def test_caps_that_a_few_moves_do_not_keep_are_kept_by_annealing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [topical_layer(seed, heat) for seed in range(6) for heat in (0.8, 1.0)]
    assert max(map(heaviest, layers)) <= 1.05
    monkeypatch.setattr(finish_layer, "_ANEW", 0)
    assert max(map(heaviest, layers)) > 1.05
