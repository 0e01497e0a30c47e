"""What a configuration says of its routing is found wherever a family writes it."""

import pytest

from specmoe.errors import CheckpointError
from specmoe.routing_config import (
    experts_per_token,
    language_config,
    num_decoder_layers,
    num_expert_groups,
    num_experts,
    stated_model_types,
)


@pytest.mark.parametrize(
    "wrapped", [lambda c: c, lambda c: {"text_config": c}, lambda c: {"thinker_config": {"text_config": c}}]
)
def test_numbers_are_found_at_any_depth(wrapped) -> None:
    config = wrapped({"model_type": "deepseek_v3", "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 4})
    assert (num_experts(config), experts_per_token(config), num_expert_groups(config, "m")) == (256, 8, 4)
    assert stated_model_types(config)[-1] == "deepseek_v3"
    assert language_config(config)["n_group"] == 4


def test_a_configuration_nested_without_end_is_read() -> None:
    config: dict[str, object] = {"num_experts": 4}
    for _ in range(5000):
        config = {"text_config": config}
    assert num_experts(config) == 4


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"num_experts": 4}, 4), ({"moe_num_experts": [64, 64]}, 64), ({"num_experts": "8"}, None), ({}, None)],
)
def test_the_number_of_experts(config, expected) -> None:
    assert num_experts(config) == expected


@pytest.mark.parametrize("key", ["num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"])
def test_the_experts_of_a_token(key) -> None:
    assert experts_per_token({key: 6}) == 6
    assert experts_per_token({key: [6, 8]}) == 6


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mixtral"}, 1),
        ({"model_type": "deepseek_v32"}, 8),
        ({"model_type": "deepseek_v2", "n_group": 8, "topk_method": "greedy"}, 1),
        ({"model_type": "deepseek_v2", "n_group": 8, "topk_method": "group_limited_greedy"}, 8),
        ({"num_expert_group": 2}, 2),
    ],
)
def test_expert_groups(config, expected) -> None:
    assert num_expert_groups(config, "m") == expected


@pytest.mark.parametrize("value", [0, "3", True])
def test_numbers_that_make_no_sense_are_refused(value) -> None:
    with pytest.raises(CheckpointError, match="m states its expert groups as"):
        num_expert_groups({"n_group": value}, "m")
    with pytest.raises(CheckpointError, match="m states num_hidden_layers as"):
        num_decoder_layers({"num_hidden_layers": value}, "m")
