"""Ids hardly seen take the row of the nearest token: the search by hand, the table, and what is expected of it."""

from dataclasses import replace

import numpy as np
import pytest

from specmoe.errors import ArtifactError, MismatchError, UsageError
from specmoe.placement.check import check_plan
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.solve import solve
from specmoe.placement.solvers import nearest_tokens as module
from specmoe.placement.solvers.nearest_tokens import nearest_tokens
from specmoe.placement.solvers.token_rows import TokenRows
from specmoe.placement.token_embeddings import TokenEmbeddings
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

EXPERTS, TOPICS, IDS_OF_TOPIC, REQUEST_TOKENS = 16, 4, 150, 25
VOCABULARY = TOPICS * IDS_OF_TOPIC
ASKED = {"attention": "tp", "max_imbalance": 1.3, "bound_seconds": 0, "best_effort": True}


def make_profile(seed, requests):
    """Token id v is of topic v % TOPICS, and calls for its four experts; low ids are common, high ones rare."""
    rng = np.random.default_rng(seed)
    token_ids = (VOCABULARY * rng.random(requests * REQUEST_TOKENS) ** 3).astype(np.int32)
    own = np.arange(EXPERTS)[None] % TOPICS == token_ids[:, None] % TOPICS
    score = rng.gumbel(size=(len(token_ids), 2, EXPERTS)) + 4.0 * own[:, None]
    expert_ids = np.argsort(-score, axis=2)[:, :, :2].astype(np.uint8)
    counts = [np.bincount(ids.ravel(), minlength=EXPERTS) for ids in expert_ids.swapaxes(0, 1)]
    return RoutingProfile(
        layer_ids=np.arange(2, dtype=np.int32),
        expert_counts=np.stack(counts).astype(np.int64),
        num_logical_experts=EXPERTS,
        top_k=2,
        num_tokens=len(token_ids),
        vocab_size=VOCABULARY,
        sample=RoutingSample(
            expert_ids=expert_ids,
            token_ids=token_ids,
            request_ids=np.arange(requests, dtype=np.int32).repeat(REQUEST_TOKENS),
        ),
    )


def embeddings_by_topic(spread=0.3):
    rng = np.random.default_rng(5)
    rows = np.eye(TOPICS)[np.arange(VOCABULARY) % TOPICS] + spread * rng.standard_normal((VOCABULARY, TOPICS))
    return TokenEmbeddings(rows=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


REQUESTS = 40
PROFILE = make_profile(0, REQUESTS)


@pytest.fixture(scope="module")
def plans():
    return {name: solve(PROFILE, 4, embeddings=given, **ASKED) for name, given in
            (("none", None), ("nearest", embeddings_by_topic()))}  # fmt: skip


def test_the_nearest_well_known_other_token_is_found_whatever_the_parts(monkeypatch):
    monkeypatch.setattr(module, "_PART", 7)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 5)).astype(np.float32)
    rows[3] = 0
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    seen = rng.integers(4, size=45)
    found = nearest_tokens(rows, seen)
    for token in range(45):
        others = [v for v in range(40) if seen[v] >= 2 and v not in (token, 3)]
        has_row = token < 40 and token != 3
        assert found[token] == (max(others, key=lambda v: rows[v] @ rows[token]) if has_row else -1)


def test_without_well_known_tokens_none_stands_in():
    assert (nearest_tokens(np.eye(4, dtype=np.float32), np.array([5, 1, 1, 0])) == -1).all()


def test_ids_hardly_seen_have_the_row_of_their_nearest_and_the_others_their_own(plans):
    seen = np.bincount(PROFILE.sample.token_ids, minlength=VOCABULARY)
    nearest = nearest_tokens(embeddings_by_topic().rows, seen)
    without, table, sure = plans["none"], plans["nearest"].token_to_rank, plans["nearest"].token_confidence
    assert (seen == 0).sum() > 100
    assert (without.token_to_rank[:, seen == 0] == -1).all()
    for token in np.flatnonzero(seen < 2):
        assert np.array_equal(table[:, token], table[:, nearest[token]])
        assert np.array_equal(sure[:, token], sure[:, nearest[token]])
    assert np.array_equal(table[:, seen >= 2], without.token_to_rank[:, seen >= 2])
    check_plan(plans["nearest"], PROFILE).require_legal()


def test_it_saves_copies_on_new_text_and_the_plan_expects_that(plans):
    # As many tokens as the profile has: slices of a batch are as small, and as often full.
    others = [make_profile(seed, REQUESTS).sample for seed in range(1, 11)]
    copies = {
        name: np.mean([mean_metrics(measure_plan(plan, other)).remote_copies_per_token for other in others])
        for name, plan in plans.items()
    }
    assert copies["nearest"] < 0.85 * copies["none"]
    expected = {name: plan.predicted["held_out_objective"] for name, plan in plans.items()}
    assert expected["none"] - expected["nearest"] == pytest.approx(copies["none"] - copies["nearest"], rel=0.4)


def test_a_stand_in_knows_nothing_of_the_fold_that_it_stands_in_for():
    seen = np.bincount(PROFILE.sample.token_ids, minlength=VOCABULARY)
    rows = TokenRows.of(PROFILE.sample, 0, nearest_tokens(embeddings_by_topic().rows, seen))
    pairs, stand_in = rows.stand_ins()
    assert len(pairs) > 20
    of_pair = list(zip(rows.id_of_pair.tolist(), rows.fold_of_pair.tolist(), strict=True))
    for pair, other in zip(pairs, stand_in, strict=True):
        token, fold = of_pair[pair]
        nearest = rows.token_ids[of_pair[other][0]]
        assert nearest == rows.nearest[rows.token_ids[token]]
        # Its row leaves out this fold, or there is nothing of this fold in it.
        assert of_pair[other][1] == fold or (of_pair[other][0], fold) not in of_pair


@pytest.mark.parametrize(
    ("change", "asked", "error", "message"),
    [
        ({}, {"attention": "dp"}, UsageError, "token tables of attention 'tp'"),
        ({}, {"method": "eplb"}, UsageError, "'tp' by 'eplb'"),
        ({"model_fingerprint": "ab"}, {}, MismatchError, "another model"),
        ({"sample": replace(PROFILE.sample, token_ids=None)}, {}, ArtifactError, "does not tell token ids"),
        ({"sample": None}, {}, ArtifactError, "counts alone"),
    ],
)
def test_where_embeddings_are_of_no_use_one_sentence_says_so(change, asked, error, message):
    with pytest.raises(error, match=message):
        solve(replace(PROFILE, **change), 4, embeddings=embeddings_by_topic(), **(ASKED | asked))
