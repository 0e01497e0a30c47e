"""Fixed buffers: every row has its own place or is flagged, and a step of them can be captured in a CUDA graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specmoe
from specmoe.errors import UsageError
from specmoe.kernels.assign.assign import assign
from specmoe.kernels.routing_tables import RoutingTables
from specmoe.runtime.fixed_exchange import FixedExchange
from specmoe.runtime.static_decode import StaticDecode
from specmoe.runtime.workers import Workers

CPU = torch.device("cpu")


def workers_of(plan, world_size, process=0, device=CPU):
    return Workers(ep_size=plan.ep_size, process=process, world_size=world_size, device=device)


@pytest.fixture(scope="module")
def plan(random_plan):
    return random_plan(np.random.default_rng(0), num_experts=12, ranks_per_node=(4,), top_k=3, extra_slots=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 9), st.sampled_from([2, 4]), st.integers(0, 1), st.integers(1, 12))
def test_every_row_has_its_place_or_the_overflow_is_flagged(plan, seed, num_tokens, world_size, process, rows_per_peer):
    rng = np.random.default_rng(seed)
    experts = torch.tensor(np.argsort(rng.random((num_tokens, 12)), axis=1)[:, :3])
    per_process = plan.ep_size // world_size
    home = torch.full((num_tokens,), process * per_process, dtype=torch.int32)
    tables = RoutingTables.of_layer(plan, 0, CPU)
    assignment = assign(experts, torch.ones(num_tokens, 3), home, tables)
    places = FixedExchange(workers_of(plan, world_size, process), rows_per_peer).places(assignment)

    num_rows = int(assignment.row_offsets[-1])
    rank_of_row = np.repeat(np.arange(4), np.diff(assignment.row_offsets.numpy()))
    sent = np.bincount(rank_of_row // per_process, minlength=world_size)
    sent[process] = 0
    assert bool(places.overflow) == (sent.max() > rows_per_peer)
    named = places.token_places[places.token_places >= 0].tolist()
    assert len(set(named)) == len(named)
    if not places.overflow:
        assert len(named) == num_rows
        of_row = dict(zip(assignment.token_rows[assignment.token_rows >= 0].tolist(), named, strict=True))
        peers = [other for other in range(world_size) if other != process]
        for row, place in of_row.items():
            owner = int(rank_of_row[row]) // per_process
            first = len(peers) * rows_per_peer if owner == process else peers.index(owner) * rows_per_peer
            assert 0 <= place - first < (rows_per_peer if owner != process else num_rows)
            assert torch.equal(places.row_slots[place], assignment.row_slots[row])
            assert torch.equal(places.row_weights[place], assignment.row_weights[row])
        empty = sorted(set(range(len(places.row_slots))) - set(named))
        assert (places.row_slots[empty] == -1).all()


def test_buffers_hold_what_the_plan_predicts_and_room_for_chance(plan):
    predicted = replace(plan, predicted={"profile": {"remote_copies_per_token": 1.2}})
    # 64 tokens x 1.2 copies over 3 other ranks = 25.6 rows, three standard deviations more, and one.
    assert StaticDecode(max_tokens=64).buffer_rows(predicted, workers_of(plan, 4)) == 42
    assert StaticDecode(max_tokens=2).buffer_rows(predicted, workers_of(plan, 4)) == 2, "there cannot be more"
    assert StaticDecode(max_tokens=64).buffer_rows(plan, workers_of(plan, 2)) == 128, "nothing is predicted"
    assert StaticDecode(max_tokens=64, rows_per_peer=7).buffer_rows(predicted, workers_of(plan, 4)) == 7


@pytest.mark.parametrize("name", ["max_tokens", "rows_per_peer"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} is 0, at least 1 was expected"):
        StaticDecode(**{"max_tokens": 4, name: 0})


def test_a_deferred_step_does_not_ask_a_cache_how_long_it_is(compiled_model, quiet_transformers):
    class Cache:
        def get_seq_length(self):
            raise AssertionError("a static cache answers with a tensor, which the host would wait for")

    model = specmoe.load(compiled_model("olmoe").compiled["static"], decode=StaticDecode(max_tokens=2))
    begin = {"input_ids": torch.tensor([[5, 6]]), "past_key_values": Cache()}
    with model.specmoe.static.deferring_overflow():
        model.specmoe.begin_forward(model, (), begin)
    with pytest.raises(AssertionError, match="a static cache"):
        model.specmoe.begin_forward(model, (), begin)


def test_a_deferred_step_refuses_more_tokens_than_it_has_room_for(compiled_model, quiet_transformers):
    model = specmoe.load(compiled_model("olmoe").compiled["static"], decode=StaticDecode(max_tokens=2))
    with model.specmoe.static.deferring_overflow(), pytest.raises(UsageError, match="3 tokens are more than the 2"):
        model(torch.tensor([[5, 6, 7]]))


@pytest.mark.gpu
def test_on_a_gpu_a_deferred_step_of_another_type_is_refused(compiled_model, quiet_transformers):
    compiled = compiled_model("olmoe").compiled["static"]
    model = specmoe.load(compiled, device="cuda", decode=StaticDecode(max_tokens=4))
    with model.specmoe.static.deferring_overflow(), pytest.raises(UsageError, match="runs in bfloat16"):
        model(torch.tensor([[5, 6, 7]], device="cuda"))


@pytest.mark.gpu
def test_on_a_gpu_a_layer_is_captured_in_a_graph_and_replayed(compiled_model, quiet_transformers):
    model = specmoe.load(
        compiled_model("qwen3_moe").compiled["cover"],
        device="cuda",
        dtype="bfloat16",
        decode=StaticDecode(max_tokens=8),
    )
    layer = model.specmoe.layers[0]
    generator = torch.Generator(device="cuda").manual_seed(0)

    def inputs():
        hidden = torch.randn((4, 32), device="cuda", generator=generator).to(torch.bfloat16)
        weights, index = torch.rand((4, 8), device="cuda", generator=generator).topk(3)
        return hidden, index, weights

    hidden, index, weights = inputs()
    with torch.no_grad(), model.specmoe.static.deferring_overflow() as flag:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            layer.forward(hidden, index, weights)
            torch.cuda.set_sync_debug_mode("error")
            try:
                layer.forward(hidden, index, weights)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer.forward(hidden, index, weights)
        for held, new in zip((hidden, index, weights), inputs(), strict=True):
            held.copy_(new)
        graph.replay()
        assert not flag
        assert torch.equal(out, layer.forward(hidden, index, weights))
