"""A capacity policy on a loaded model: what it drops and reroutes, and when."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import specmoe
from specmoe.errors import CheckpointError, MismatchError, UsageError
from specmoe.placement.capacity import capacity_loss, layer_pairs
from specmoe.placement.expected_pairs import with_expected_pairs
from specmoe.profiler.routing_profile import RoutingSample
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.router_scores import RouterScores
from specmoe.runtime.token_places import TokenPlaces

pytestmark = pytest.mark.usefixtures("quiet_transformers")

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss"]


def some_tokens(*shape):
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(7))


def run(made, policy, tokens, choice="static"):
    model = specmoe.load(made.compiled[choice], capacity=policy)
    with torch.no_grad():
        return model(tokens).logits, model.specmoe.counters()


@pytest.mark.parametrize(("family", "overflow"), [*((family, "reroute") for family in FAMILIES), ("olmoe", "drop")])
def test_an_ample_capacity_changes_nothing_and_a_tight_one_drops_for_every_family(compiled_model, family, overflow):
    made, tokens = compiled_model(family), some_tokens(2, 12)
    free, _ = run(made, None, tokens)
    ample, counted = run(made, CapacityPolicy(8.0, overflow=overflow), tokens)
    torch.testing.assert_close(ample, free, rtol=1e-6, atol=1e-6)
    assert {layer.dropped_pairs for layer in counted} == {0}
    tight, counted = run(made, CapacityPolicy(0.5, overflow=overflow), tokens)
    assert all(layer.dropped_pairs > 0 for layer in counted)
    assert not torch.allclose(tight, free)
    assert tight.isfinite().all()


def test_rerouting_serves_more_pairs_than_dropping_and_all_more_at_home(compiled_model):
    made, tokens = compiled_model("olmoe"), some_tokens(4, 16)
    _, dropped = run(made, CapacityPolicy(0.75), tokens, "cover")
    _, rerouted = run(made, CapacityPolicy(0.75, overflow="reroute"), tokens, "cover")
    # The first layer sees the same tokens in both; later ones do not.
    assert rerouted[0].rerouted_pairs > 0
    assert rerouted[0].pairs == dropped[0].pairs + rerouted[0].rerouted_pairs
    assert rerouted[0].local_pairs >= dropped[0].local_pairs + rerouted[0].rerouted_pairs
    assert rerouted[0].pairs + rerouted[0].dropped_pairs == 64 * 3


def test_a_token_without_experts_keeps_its_residual(compiled_model):
    made, tokens = compiled_model("olmoe"), some_tokens(1, 8)
    model = specmoe.load(made.compiled["static"], capacity=CapacityPolicy(0.05, level="device"))
    outputs = []
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _args, out: outputs.append(out[0]))
    with torch.no_grad():
        model(tokens)
    assert model.specmoe.counters()[0].pairs < 8
    assert bool((outputs[0] == 0).all(dim=-1).any())


def test_decode_steps_are_free_unless_asked_for(compiled_model):
    made, tokens = compiled_model("olmoe"), some_tokens(8, 1)
    _, counted = run(made, CapacityPolicy(0.25), tokens)
    assert counted[0].dropped_pairs == 0
    _, counted = run(made, CapacityPolicy(0.25, at_decode=True), tokens)
    assert counted[0].dropped_pairs > 0


@pytest.mark.parametrize("choice", ["static", "tp"])
def test_tokens_of_high_priority_are_the_last_to_be_dropped(compiled_model, choice):
    made, tokens = compiled_model("olmoe"), some_tokens(6, 8)
    policy = CapacityPolicy(0.5, priority=lambda ids: (ids == tokens[2, 3]).float())
    model = specmoe.load(made.compiled[choice], capacity=policy)
    outputs = []
    model.model.layers[0].mlp.experts.register_forward_hook(lambda _module, _args, out: outputs.append(out))
    plain = specmoe.load(made.compiled[choice])
    plain.model.layers[0].mlp.experts.register_forward_hook(lambda _module, _args, out: outputs.append(out))
    with torch.no_grad():
        model(tokens)
        plain(tokens)
    bounded, free = outputs[0], outputs[1]
    chosen = (tokens == tokens[2, 3]).flatten()
    same = torch.isclose(bounded.view_as(free), free, rtol=1e-4, atol=1e-5).all(dim=-1)
    assert same[chosen].all()
    assert not same[~chosen].all()


def test_first_come_first_served_drops_the_last_tokens(compiled_model):
    made, tokens = compiled_model("olmoe"), some_tokens(1, 40)
    outputs = []
    for policy in (CapacityPolicy(0.5, order="arrival"), None):
        model = specmoe.load(made.compiled["static"], capacity=policy)
        model.model.layers[0].mlp.experts.register_forward_hook(lambda _module, _args, out: outputs.append(out))
        with torch.no_grad():
            model(tokens)
    same = (outputs[0] == outputs[1]).all(dim=1)
    assert same[:5].all()
    assert not same[-5:].any()


HOMES = [2, 0, 3, 3, 1, 0]


@pytest.fixture(scope="module")
def expecting(compiled_model, tmp_path_factory):
    """olmoe compiled by plans that say what traffic they expect: that of a batch of six requests, by replica choice."""
    made = compiled_model("olmoe")
    model, seen = specmoe.load(made.compiled["static"]), []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _module, _args, out: seen.append(out))
    with torch.no_grad():
        model(some_tokens(6, 16))
    ids = np.stack([out[2].numpy() for out in seen], axis=1).astype(np.uint8)
    gates = np.stack([out[1].numpy() for out in seen], axis=1).astype(np.float16)
    requests = np.repeat(np.arange(6, dtype=np.int32), 16)
    sample = RoutingSample(expert_ids=ids, gate_weights=gates, request_ids=requests)
    plans = {choice: with_expected_pairs(made.plans[choice], sample) for choice in ("static", "cover")}
    folder = tmp_path_factory.mktemp("expecting")
    for choice, plan in plans.items():
        specmoe.reshard(made.source, plan, folder / choice)
    return replace(made, plans=plans, compiled={choice: folder / choice for choice in plans}), sample


@pytest.mark.parametrize("division", [None, "plan", "even"])
@pytest.mark.parametrize("level", ["expert", "device"])
@pytest.mark.parametrize("choice", ["static", "cover"])
def test_a_bound_drops_what_evaluate_says_under_either_division(expecting, choice, level, division):
    made, sample = expecting
    model = specmoe.load(made.compiled[choice], capacity=CapacityPolicy(0.75, level=level, division=division))
    model.specmoe.pin_requests(HOMES)
    with torch.no_grad():
        model(some_tokens(6, 16))
    # The first layer alone: what is dropped there changes what the next ones are asked for.
    counted, homes = model.specmoe.counters()[0], np.repeat(np.array(HOMES, dtype=np.int32), 16)
    pairs = layer_pairs(made.plans[choice], sample, 0, homes)
    loss = capacity_loss(made.plans[choice], 0, pairs, 0.75, level, "drop", division or "plan")
    assert counted.dropped_pairs == round(loss.lost_pair_rate * 6 * 16 * 3) > 0
    assert max(counted.pairs_of_rank) == round(loss.heaviest_load * 6 * 16 * 3 / 4)
    other = capacity_loss(made.plans[choice], 0, pairs, 0.75, level, "drop", "even" if division != "even" else "plan")
    assert other != loss, "the two divisions differ here"


@pytest.mark.parametrize("overflow", ["drop", "reroute"])
def test_on_equally_full_ranks_no_device_gets_more_than_the_whole_bound(expecting, overflow):
    made, _ = expecting
    policy = CapacityPolicy(0.8, level="device", overflow=overflow)
    model = specmoe.load(made.compiled["cover"], capacity=policy)
    model.specmoe.pin_requests([0, 1, 2, 3])
    with torch.no_grad():
        model(some_tokens(4, 24))
    slots = np.bincount(made.plans["cover"].rank_of_physical)
    whole = np.ceil(0.8 * 4 * 24 * 3 * slots / slots.sum())
    for layer in model.specmoe.counters():
        assert (np.array(layer.pairs_of_rank) <= whole).all()
        assert layer.dropped_pairs > 0


def test_a_plan_without_figures_is_bounded_evenly_unless_that_is_refused(compiled_model):
    compiled = compiled_model("olmoe").compiled["static"]
    specmoe.load(compiled, capacity=CapacityPolicy(1.0))
    with pytest.raises(MismatchError, match="does not say what traffic it expects, which capacity division 'plan'"):
        specmoe.load(compiled, capacity=CapacityPolicy(1.0, division="plan"))


MISTAKES = {
    "no factor": ({"factor": 0}, "factor is 0, a positive number"),
    "an unknown level": ({"factor": 1.0, "level": "node"}, "'expert' or 'device' was expected"),
    "an unknown overflow": ({"factor": 1.0, "overflow": "queue"}, "'drop' or 'reroute' was expected"),
    "an unknown order": ({"factor": 1.0, "order": "random"}, "'score' or 'arrival' was expected"),
    "an unknown division": ({"factor": 1.0, "division": "fair"}, "'plan' or 'even' was expected"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_policy_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        CapacityPolicy(**arguments)


def test_a_plain_number_is_no_policy(compiled_model):
    with pytest.raises(UsageError, match="a CapacityPolicy or None"):
        specmoe.load(compiled_model("olmoe").compiled["static"], capacity=1.5)


def test_router_scores_are_the_routers_own_weights_where_it_chose(compiled_model):
    made = compiled_model("deepseek_v3")
    model = specmoe.load(made.compiled["static"])
    block = model.model.layers[1].mlp
    scores = RouterScores(block)
    chosen = []
    block.experts.register_forward_hook(lambda _module, args, _out: chosen.append(args[1:3]))
    with torch.no_grad():
        model(some_tokens(1, 5))
    index, weights = chosen[0]
    everything = scores.of_every_expert(index, weights, TokenPlaces())
    assert everything.shape == (5, 8)
    torch.testing.assert_close(everything.gather(1, index), weights)


def test_a_router_of_another_kind_cannot_reroute():
    block = torch.nn.Module()
    block.gate = torch.nn.Linear(4, 8, bias=False)
    scores = RouterScores(block)
    logits = block.gate(torch.randn(3, 4))
    weights, index = logits.detach().relu().topk(2)
    with pytest.raises(CheckpointError, match="neither a softmax nor a sigmoid"):
        scores.of_every_expert(index, weights + 1, TokenPlaces())
    with pytest.raises(CheckpointError, match="no router"):
        RouterScores(torch.nn.Module())
