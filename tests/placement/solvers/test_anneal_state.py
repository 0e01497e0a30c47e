"""What annealing prices by moves: the same as a state counted afresh, in words of bits and rank by rank."""

import numpy as np
import pytest

from specmoe.placement.solvers.anneal_state import Move, new_state
from specmoe.placement.solvers.copies import Items, Network, add_copy, copies_from, drop_copy
from specmoe.placement.solvers.copy_moves import carry_out, find_shift, price
from specmoe.placement.solvers.cover_rule import cost_of_cover, find_cover, mark_of, mark_words, ties_of
from specmoe.placement.solvers.cover_words import (
    cost_of_word,
    near_words,
    served_word,
    shift_pairs,
    word_of,
    word_width,
)
from specmoe.placement.solvers.expert_sets import rows_by_expert


def random_held(rng, top_k, ep_size):
    """uint32 [1, R]: every expert on one rank at least, some on many."""
    held, doubled = np.zeros((1, ep_size), dtype=np.uint32), rng.random()
    for k in range(top_k):
        count = int(rng.integers(1, ep_size + 1)) if rng.random() < doubled else 1
        held[0, rng.choice(ep_size, size=count, replace=False)] |= np.uint32(1 << k)
    return held


def marks_of(held):
    """int64 [1, W]: the ranks that hold anything."""
    marks = np.zeros((1, mark_words(held.shape[1])), dtype=np.int64)
    for rank in np.flatnonzero(held[0]):
        marks[0, rank >> 6] |= mark_of(rank)
    return marks


@pytest.mark.parametrize("ranks_per_node", [3, 16])
@pytest.mark.parametrize(
    ("top_k", "ep_size", "width"),
    [(k, ranks, 4) for k in (1, 2, 3, 4) for ranks in (1, 2, 5, 8, 16)]
    + [(k, ranks, 8) for k in (5, 6, 7, 8) for ranks in (1, 2, 5, 8)],
)
def test_a_word_is_served_as_the_rule_says_rank_by_rank(top_k, ep_size, width, ranks_per_node):
    rng = np.random.default_rng((top_k, ep_size))
    node, ranks = np.arange(ep_size, dtype=np.int32) // ranks_per_node, np.zeros(ep_size + 1, int)
    served, tie, near = np.zeros((1, top_k), dtype=np.int16), ties_of(node), near_words(node, width)
    assert word_width(top_k, ep_size) == width
    for _ in range(400):
        held, home, full = random_held(rng, top_k, ep_size), int(rng.integers(ep_size)), (1 << top_k) - 1
        load, by_word, word = np.zeros(ep_size), np.zeros(ep_size), word_of(held, 0, width)
        found = find_cover(held, marks_of(held), 0, home, top_k, tie, ranks, ranks.copy(), served, 0)
        np.add.at(load, served[0], 1.0)
        shift_pairs(0, served_word(word, home, full, near[home], width), 1.0, by_word, width)
        assert by_word.tolist() == load.tolist()
        assert len(set(served[0].tolist()) - {home}) == found
        for surcharge in (0.0, 0.5):
            cost = cost_of_cover(home, node, surcharge, served, 0, found)
            assert cost_of_word(word, home, full, near, surcharge, width) == cost


def test_more_experts_or_ranks_do_not_fit_a_word():
    assert [word_width(*shape) for shape in ((9, 4), (5, 9), (4, 17))] == [0, 0, 0]


CASES = {
    "words": (4, Network(np.zeros(4, dtype=np.int32), 0.0, np.ones(4))),
    "words on two nodes": (4, Network(np.array([0, 0, 1, 1], dtype=np.int32), 0.5, np.ones(4))),
    "words of bytes": (6, Network(np.zeros(4, dtype=np.int32), 0.0, np.ones(4))),
    "words of bytes on two nodes": (7, Network(np.array([0, 0, 1, 1], dtype=np.int32), 0.5, np.ones(4))),
    "nine experts": (9, Network(np.zeros(4, dtype=np.int32), 0.0, np.ones(4))),
    "two nodes": (9, Network(np.array([0, 0, 1, 1], dtype=np.int32), 0.5, np.ones(4))),
    "many ranks": (5, Network(np.zeros(9, dtype=np.int32), 0.0, np.ones(9))),
    "many ranks on three nodes": (5, Network(np.arange(9, dtype=np.int32) // 3, 0.5, np.ones(9))),
}


@pytest.mark.parametrize("case", CASES)
def test_moves_change_cost_and_loads_as_counting_afresh_does(case):
    top_k, network = CASES[case]
    ep_size = len(network.node)
    rng = np.random.default_rng(3)
    sets = np.sort(np.argsort(rng.random((200, 10)), axis=1)[:, :top_k], axis=1).astype(np.int32)
    offsets, rows = rows_by_expert(sets, 10)
    items = Items(sets, rng.random(200), np.sort(rng.integers(ep_size, size=200)).astype(np.int32), offsets, rows)
    holds = np.zeros((ep_size, 10), dtype=np.bool_)
    holds[np.arange(10) % ep_size, np.arange(10)] = True
    holds[(np.arange(10) + 1) % ep_size, np.arange(10)] = True
    copies, moved = copies_from(holds), 0
    state = new_state(items, copies, network)
    while moved < 60:
        i, j = (int(rank) for rank in rng.integers(ep_size, size=2))
        a = int(rng.choice(np.flatnonzero(copies.holds[i])))
        b = int(rng.choice(np.flatnonzero(copies.holds[j] if i != j else copies.holds[i] == 0)))
        if copies.holds[i, b] or (i != j and copies.holds[j, a]) or copies.num_holders[a] < 2:
            continue
        before, load = (items.weight * state.copies).sum(), state.load.copy()
        move = Move(i, a, j, b)
        change = price(items, network, state, move)
        find_shift(items, network, state, move)
        assert np.allclose(state.shift_of.sum(axis=0), state.shift)
        carry_out(items, network, state, move)
        for rank, gone, new in ((i, a, b), (j, b, a)) if i != j else ((i, a, b),):
            drop_copy(copies, gone, rank)
            add_copy(copies, new, rank)
        afresh = new_state(items, copies, network)
        assert state.copies.tolist() == afresh.copies.tolist()
        assert state.served.tolist() == afresh.served.tolist()
        assert before + change == pytest.approx((items.weight * afresh.copies).sum())
        assert state.cost_of.sum() == pytest.approx(change)
        assert np.allclose(load + state.shift, afresh.load)
        assert np.allclose(state.load, afresh.load)
        moved += 1
