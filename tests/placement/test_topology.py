"""Topologies: what is read back, what is refused and in which words."""

import json
from pathlib import Path

import numpy as np
import pytest

from specmoe.errors import ArtifactError, UsageError
from specmoe.placement.topology import Topology

FULL = {
    "ranks_per_node": [2, 3],
    "intra_node_gb_per_s": 400,
    "inter_node_gb_per_s": 25.0,
    "intra_node_latency_us": 2,
    "inter_node_latency_us": 8,
    "relative_speed": [1, 1, 0.5, 1, 1],
    "slots": [3, 3, 2, 3, 3],
}


def test_a_full_file_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(FULL), encoding="utf-8")
    topology = Topology.load(str(path))
    assert topology == Topology.from_json(json.loads(json.dumps(topology.to_json())))
    assert (topology.ep_size, topology.num_nodes) == (5, 2)
    assert topology.node_of_rank.tolist() == [0, 0, 1, 1, 1]
    assert topology.speed_of_rank.tolist() == [1, 1, 0.5, 1, 1]
    assert topology.slots_of_rank(14).tolist() == [3, 3, 2, 3, 3]


@pytest.mark.parametrize(
    ("experts", "ranks", "extra", "slots"),
    [(32, 4, 0, [8] * 4), (32, 4, 2, [10] * 4), (60, 8, 0, [8] * 8), (5, 4, 0, [2] * 4), (4, 4, 3, [4] * 4)],
)
def test_equal_slots_are_the_ceiling_plus_the_extra(experts: int, ranks: int, extra: int, slots: list[int]) -> None:
    got = Topology.single_node(ranks).slots_of_rank(experts, extra)
    assert got.dtype == np.int32
    assert got.tolist() == slots


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks_per_node": []}, "ranks_per_node is"),
        ({"ranks_per_node": [2, 0]}, "ranks_per_node is"),
        ({"ranks_per_node": [2, True]}, "ranks_per_node is"),
        ({"ranks_per_node": 4}, 'needs "ranks_per_node"'),
        ({"bandwidth": 3}, "unknown keys .'bandwidth'."),
        ({"inter_node_gb_per_s": 0}, "inter_node_gb_per_s is 0"),
        ({"inter_node_latency_us": "fast"}, "inter_node_latency_us is 'fast'"),
        ({"relative_speed": [1, 1]}, "relative_speed is .* 5 positive numbers"),
        ({"relative_speed": [1, 1, 1, 1, float("inf")]}, "relative_speed"),
        ({"relative_speed": [1, 1, 1, 1, 1e308]}, "relative_speed .* up to 1e.09"),
        ({"intra_node_gb_per_s": 10**400}, "intra_node_gb_per_s is 1000"),
        ({"inter_node_gb_per_s": 1e-300}, "inter_node_gb_per_s is 1e-300"),
        ({"slots": [1.5, 3, 3, 3, 3]}, "slots is"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Topology.from_json(FULL | change)


def test_impossible_slots_are_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match="ep_size is 5, at most one rank per expert"):
        Topology.single_node(5).slots_of_rank(4)
    with pytest.raises(UsageError, match="a rank has 5 slots, at most 4"):
        Topology.single_node(4).slots_of_rank(4, 4)
    with pytest.raises(UsageError, match="a rank has 100000000001 slots"):
        Topology.single_node(4).slots_of_rank(4, 10**11)
    with pytest.raises(UsageError, match="14 slots in all, at least 15"):
        Topology.from_json(FULL).slots_of_rank(15)
    with pytest.raises(UsageError, match="ep_size is 0"):
        Topology.single_node(0)
    with pytest.raises(UsageError, match="extra_slots is -1"):
        Topology.single_node(2).slots_of_rank(4, -1)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "topology.json"
    with pytest.raises(ArtifactError, match=r"topology\.json cannot be read"):
        Topology.load(path)
    for text in ("{", "[" * 100_000):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ArtifactError, match=r"topology\.json cannot be read"):
            Topology.load(path)
    path.write_text('{"ranks_per_node": [2], "x": 1}', encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"topology\.json: the topology has unknown keys"):
        Topology.load(path)


def test_a_byte_order_mark_before_the_json_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "topology.json"
    path.write_text('{"ranks_per_node": [2]}', encoding="utf-8-sig")
    assert Topology.load(path).ep_size == 2
