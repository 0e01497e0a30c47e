"""Each engine's file, to the letter and as the engine reads it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from specmoe.errors import UsageError
from specmoe.placement.export.engines import ENGINES

ORDERED, SWAPPED = "[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]", "[5, 2, 0, 7, 1, 3, 4, 6, 5, 0]"
EXPECTED = {
    "sglang": f'{{"physical_to_logical_map": [{ORDERED}, {ORDERED}, {SWAPPED}, {ORDERED}]}}',
    "trtllm": (
        "num_slots: 10\n"
        "initial_global_assignments:\n"
        f"  1: {ORDERED}\n  2: {SWAPPED}\n  3: {ORDERED}\n"
        "layer_updates_per_iter: 0\n"
    ),
    "vllm": f"[{ORDERED}, {SWAPPED}, {ORDERED}]",
}


@pytest.mark.parametrize("engine", EXPECTED)
def test_the_file_is_the_engines_own_to_the_letter(engine, small_plan) -> None:
    assert ENGINES[engine].text(small_plan, 4) == EXPECTED[engine]


def test_vllm_ascend_numbers_moe_layers_from_0_and_lists_each_devices_experts(small_plan) -> None:
    text = ENGINES["vllm-ascend"].text(small_plan, None)
    assert text.startswith(
        '{\n "moe_layer_count": 3,\n "layer_list": [\n  {\n   "layer_id": 0,\n   "device_count": 2,\n'
    )
    layers = json.loads(text)["layer_list"]
    assert [layer["layer_id"] for layer in layers] == [0, 1, 2]
    assert layers[1] == {
        "layer_id": 1,
        "device_count": 2,
        "device_list": [
            {"device_id": 0, "device_expert": [5, 2, 0, 7, 1]},
            {"device_id": 1, "device_expert": [3, 4, 6, 5, 0]},
        ],
    }


def test_dense_layers_have_sglangs_trivial_row_wherever_they_are(small_plan) -> None:
    rows = json.loads(ENGINES["sglang"].text(replace(small_plan, layer_ids=np.array([0, 2, 4], np.int32)), 6))
    trivial = json.loads(ORDERED)
    shifted = json.loads(SWAPPED)
    assert rows["physical_to_logical_map"] == [trivial, trivial, shifted, trivial, trivial, trivial]


def test_sglang_asks_for_the_number_of_layers(small_plan) -> None:
    with pytest.raises(UsageError, match=r"give --num-layers N or --model MODEL$"):
        ENGINES["sglang"].text(small_plan, None)


def read_back(engine: str, text: str, layer_ids: list[int]) -> list[list[int]]:
    """The experts [L][P] of the MoE layers, read as the engine reads its file; fails on a key that it refuses."""
    if engine == "sglang":
        content = json.loads(text)
        assert list(content) == ["physical_to_logical_map"]  # passed on as keyword arguments
        return [content["physical_to_logical_map"][layer] for layer in layer_ids]
    if engine == "trtllm":
        content = yaml.safe_load(text)
        assert set(content) == {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}  # a strict model
        assert {len(row) for row in content["initial_global_assignments"].values()} == {content["num_slots"]}
        assert content["layer_updates_per_iter"] == 0
        return [content["initial_global_assignments"][layer] for layer in layer_ids]
    if engine == "vllm":
        return list(json.loads(text))
    if engine == "vllm-ascend":
        layers = json.loads(text)["layer_list"]
        return [[e for device in layer["device_list"] for e in device["device_expert"]] for layer in layers]
    return [layer["physical_to_logical"] for layer in json.loads(text)["layers"]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("extra_slots", [0, 2])
def test_an_engine_reads_every_layers_placement_back(engine, extra_slots, random_plan) -> None:
    layer_ids = (0, 3, 4)
    plan = random_plan(
        np.random.default_rng(7),
        num_experts=12,
        ranks_per_node=(2, 2),
        top_k=3,
        extra_slots=extra_slots,
        layer_ids=layer_ids,
    )
    text = ENGINES[engine].text(plan, 6)
    assert read_back(engine, text, list(layer_ids)) == plan.physical_to_logical.tolist()
    block = plan.num_physical_experts // plan.ep_size
    assert [slot // block for slot in range(plan.num_physical_experts)] == plan.rank_of_physical.tolist()


def test_the_neutral_file_holds_the_dispatch_table_and_the_plans_digest(small_plan) -> None:
    content = json.loads(ENGINES["json"].text(small_plan, None))
    assert content["format"] == "specmoe.placement/1"
    assert content["plan_digest"] == small_plan.digest
    assert content["rank_of_physical"] == [0] * 5 + [1] * 5
    assert [layer["layer_id"] for layer in content["layers"]] == [1, 2, 3]
    assert [layer["dispatch_slot"] for layer in content["layers"]] == small_plan.dispatch_slot.tolist()


LAUNCH = {
    "sglang": (
        "--tp-size 2 --dp-size 2 --enable-dp-attention --ep-size 2 --ep-num-redundant-experts 2 "
        "--init-expert-location 'my map.json'"
    ),
    "trtllm": (
        "tensor_parallel_size: 2 moe_expert_parallel_size: 2 enable_attention_dp: true "
        'moe_config: {load_balancer: "my map.json"}'
    ),
    "vllm": (
        "--data-parallel-size 2 --enable-expert-parallel --enable-eplb --eplb-config "
        '\'{"initial_expert_map_path": "my map.json", "num_redundant_experts": 2, "step_interval": 1000000000}\''
    ),
    "vllm-ascend": (
        "--data-parallel-size 2 --enable-expert-parallel --additional-config "
        '\'{"eplb_config": {"expert_map_path": "my map.json"}}\''
    ),
    "json": "",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_launch_settings_carry_the_plans_sizes_and_the_quoted_file(engine, small_plan) -> None:
    assert " ".join(ENGINES[engine].launch(small_plan, Path("my map.json"))) == LAUNCH[engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guide_shows_every_setting_that_the_command_prints(engine, small_plan) -> None:
    guide = (Path(__file__).parents[3] / "docs/engines.md").read_text(encoding="utf-8")
    settings = " ".join(ENGINES[engine].launch(small_plan, Path("m.json")))
    for name in re.findall(r"--[\w-]+|\w+(?=\"?:)", settings):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", guide), f"docs/engines.md does not show {name}"


def test_a_plan_for_split_attention_asks_for_no_data_parallelism(small_plan) -> None:
    plan = replace(small_plan, attention="tp")
    assert "--enable-dp-attention" not in ENGINES["sglang"].launch(plan, Path("m.json"))
    assert "--tensor-parallel-size 2" in ENGINES["vllm"].launch(plan, Path("m.json"))
