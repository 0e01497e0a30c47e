"""Plans: the worked example, what comes back from a file, and every rule that makes a plan illegal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.artifact import read_artifact, write_artifact
from specmoe.errors import ArtifactError
from specmoe.placement.plan import PLAN_FORMAT, PlacementPlan
from specmoe.placement.topology import Topology


def worked_example(**changes: Any) -> PlacementPlan:
    """The plan of the glossary: 4 experts, 2 ranks, 3 slots each."""
    plan = PlacementPlan(
        topology=Topology.single_node(2),
        num_logical_experts=4,
        top_k=2,
        attention="dp",
        replica_choice="static",
        layer_ids=np.array([1], dtype=np.int32),
        physical_to_logical=np.array([[0, 2, 3, 1, 3, 0]], dtype=np.int32),
        rank_of_physical=np.array([0, 0, 0, 1, 1, 1], dtype=np.int32),
        dispatch_slot=np.array([[[0, 3, 1, 2], [5, 3, 1, 4]]], dtype=np.int32),
        method="by hand",
    )
    return replace(plan, **changes)


def test_the_glossarys_example_says_what_the_text_says() -> None:
    plan = worked_example()
    assert plan.dispatch_slot[0, 1, 3] == 4
    assert plan.slot_offsets.tolist() == [0, 3, 6]
    assert plan.holds[0].tolist() == [[True, False, True, True], [True, True, False, True]]
    assert plan.dispatch_rank[0].tolist() == [[0, 1, 0, 0], [1, 1, 0, 1]]


def test_a_saved_plan_comes_back_whole(tmp_path: Path) -> None:
    plan = worked_example(
        token_affinity=np.array([[0.5, -1.0]], dtype=np.float16),
        expected_pairs=np.full((1, 2, 6), 1 / 3, dtype=np.float32),
        objective=1.5,
        bound=1.2,
        predicted={"held_out": {"load_imbalance": 1.01}},
        profile_fingerprint="a",
        model_fingerprint="b",
    )
    plan.save(str(tmp_path / "p"))
    loaded = PlacementPlan.load(str(tmp_path / "p"))
    assert loaded.digest == plan.digest
    assert loaded.topology == plan.topology
    assert loaded.gap == pytest.approx(0.25)
    assert loaded.predicted == plan.predicted
    np.testing.assert_array_equal(loaded.token_affinity, plan.token_affinity)
    np.testing.assert_array_equal(loaded.expected_pairs, plan.expected_pairs)


def test_the_file_names_what_the_contract_names(tmp_path: Path) -> None:
    table = np.full((1, 3), -1, dtype=np.int16)
    confidence = np.zeros((1, 3), dtype=np.float16)
    worked_example(attention="tp", token_to_rank=table, token_confidence=confidence).save(tmp_path / "p")
    tensors, description = read_artifact(tmp_path / "p", PLAN_FORMAT)
    assert set(tensors) == {
        "layer_ids", "physical_to_logical", "rank_of_physical", "dispatch_slot", "token_to_rank", "token_confidence",
    }  # fmt: skip
    expected = {"ep_size": 2, "num_logical_experts": 4, "replica_choice": "static", "top_k": 2, "attention": "tp"}
    assert description.items() >= expected.items()
    assert {"topology", "method", "seed", "objective", "bound", "gap", "predicted"} <= set(description)


def int32(*rows: Any) -> Any:
    return np.array(rows, dtype=np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "pp"}, "attention is 'pp'"),
        ({"replica_choice": "random"}, "replica_choice is 'random'"),
        ({"top_k": 5}, "top_k is 5"),
        ({"layer_ids": np.array([1])}, "tensor layer_ids is int64"),
        ({"physical_to_logical": int32([0, 2, 3, 1, 3])}, "tensor physical_to_logical has shape"),
        ({"physical_to_logical": int32([0, 2, 3, 1, 3, 4])}, "values from 0 to 4"),
        ({"physical_to_logical": int32([0, 2, 0, 1, 3, 0])}, "layer 1: rank 0 holds expert 0 twice"),
        ({"physical_to_logical": int32([0, 2, 3, 2, 3, 0])}, "layer 1: no slot holds expert 1"),
        ({"rank_of_physical": int32(0, 1, 0, 0, 1, 1)}, "must not decrease"),
        ({"rank_of_physical": int32(0, 0, 0, 1, 1, 2)}, "rank_of_physical has values from 0 to 2"),
        ({"dispatch_slot": int32([[1, 3, 1, 2], [5, 3, 1, 4]])}, "slot 1, that rank 0 uses for expert 0"),
        ({"dispatch_slot": int32([[0, 3, 1, 2], [5, 3, 1, 2]])}, "rank 1 holds expert 3 but dispatches it elsewhere"),
        ({"token_to_rank": np.zeros((1, 3), np.int16)}, "belong together"),
        (
            {"token_to_rank": np.zeros((1, 3), np.int16), "token_confidence": np.zeros((1, 3), np.float16)},
            "belongs to attention 'tp'",
        ),
        ({"attention": "tp", "token_affinity": np.zeros((3, 2), np.float16)}, "belongs to attention 'dp'"),
        ({"token_affinity": np.zeros((3, 3), np.float16)}, "tensor token_affinity has shape"),
        ({"token_affinity": np.full((3, 2), np.nan, np.float16)}, "values from nan"),
        ({"token_affinity": np.full((3, 2), np.inf, np.float16)}, "values from inf"),
        ({"token_affinity": np.full((3, 2), -np.inf, np.float16)}, "values from -inf"),
        ({"expected_pairs": np.full((1, 2, 6), 1 / 3)}, "tensor expected_pairs is float64, float32 was expected"),
        ({"expected_pairs": np.full((1, 6, 2), 1 / 3, np.float32)}, "tensor expected_pairs has shape"),
        ({"expected_pairs": np.full((1, 2, 6), np.nan, np.float32)}, "values from nan"),
        ({"expected_pairs": np.array([[[3, -1, 0, 0, 0, 0]] * 2], np.float32)}, "expected_pairs has values from -1"),
        ({"expected_pairs": np.full((1, 2, 6), 0.5, np.float32)}, "layer 1: expected_pairs of rank 0 add up to 3"),
    ],
)
def test_each_broken_rule_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        worked_example(**changes)


def test_a_table_entry_beyond_the_ranks_is_refused() -> None:
    table = np.array([[0, 2]], dtype=np.int16)
    with pytest.raises(ArtifactError, match="token_to_rank has values from 0 to 2"):
        worked_example(attention="tp", token_to_rank=table, token_confidence=np.zeros((1, 2), np.float16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ep_size": 3}, "ep_size is 3, the topology has 2 ranks"),
        ({"topology": {"ranks_per_node": [0]}}, "ranks_per_node is"),
        ({"top_k": "2"}, "'top_k' is '2'"),
        ({"format": "specmoe.plan/2"}, "'specmoe.plan/2', 'specmoe.plan/1' was expected"),
    ],
)
def test_a_tampered_description_is_refused_naming_the_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    worked_example().save(tmp_path / "p")
    tensors, description = read_artifact(tmp_path / "p", PLAN_FORMAT)
    write_artifact(tmp_path / "p", tensors, description | change, force=True)
    with pytest.raises(ArtifactError, match=message) as caught:
        PlacementPlan.load(tmp_path / "p")
    assert str(tmp_path / "p") in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    worked_example().save(tmp_path / "p")
    tensors, description = read_artifact(tmp_path / "p", PLAN_FORMAT)
    del tensors["dispatch_slot"]
    write_artifact(tmp_path / "p", tensors, description, force=True)
    with pytest.raises(ArtifactError, match="tensor dispatch_slot is missing"):
        PlacementPlan.load(tmp_path / "p")


def test_the_gap_is_zero_where_the_objective_meets_the_bound() -> None:
    assert worked_example(objective=1.0, bound=1.0).gap == 0
    assert worked_example(objective=0.0, bound=0.0).gap == 0
    assert worked_example(objective=1.0).gap is None
    assert worked_example(objective=1.0, bound=1e-15).gap is None
