"""What reshard refuses, with one sentence and before anything is written."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specmoe.errors import CheckpointError, MismatchError, OutputError, SpecmoeError, UsageError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compilation import plan_compilation
from specmoe.placement.reshard.compile import reshard

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
Make = Callable[..., Path]


@pytest.fixture
def plan(permutation_plan: Callable[..., PlacementPlan]) -> PlacementPlan:
    return permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))


def refuse(source: Path, plan: Any, out: Path, kind: type[SpecmoeError], message: str, **options: Any) -> None:
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(kind, match=message) as caught:
        reshard(source, plan, out, **options)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_ids": (0, 1)}, r"places layers \[1, 2\], .* has MoE layers \[0, 1\]"),
        ({"layer_ids": (1,)}, r"has MoE layers \[1\]"),
        ({"config": {"num_experts_per_tok": 3}}, "2 experts per token, .* uses 3"),
    ],
)
def test_a_plan_for_another_model(tmp_path, make_checkpoint, recipes, plan, changes, message) -> None:
    source = make_checkpoint(tmp_path / "m", replace(recipes["mixtral"], **changes))
    refuse(source, plan, tmp_path / "out", MismatchError, message)


def test_a_plan_for_another_number_of_experts(tmp_path, make_checkpoint, recipes, permutation_plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    plan = permutation_plan([[1, 0, 2, 3]] * 2, ep_size=2, layer_ids=(1, 2))
    refuse(source, plan, tmp_path / "out", MismatchError, "places 4 experts, layer 1 .* has 8")


def test_a_plan_with_another_fingerprint(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    other = replace(plan, model_fingerprint="0" * 64)
    refuse(source, other, tmp_path / "out", MismatchError, "fingerprint is not that of")


def test_a_plan_that_is_no_plan(tmp_path, make_checkpoint, recipes) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    refuse(source, tmp_path / "absent.plan", tmp_path / "out", SpecmoeError, "is not a file")


def test_an_unknown_layout_or_number_of_jobs(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    refuse(source, plan, tmp_path / "out", UsageError, "layout is 'hff'", layout="hff")
    refuse(source, plan, tmp_path / "out", UsageError, "jobs is 0", jobs=0)


def test_hf_with_replicas(tmp_path, make_checkpoint, recipes, random_plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    plan = random_plan(
        np.random.default_rng(0), num_experts=8, ranks_per_node=(4,), top_k=2, extra_slots=1, layer_ids=(1, 2)
    )
    refuse(source, plan, tmp_path / "out", MismatchError, "cannot hold replicas", layout="hf")


def test_hf_with_ranks_that_no_engine_would_cut_so(tmp_path, make_checkpoint, recipes, random_plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    plan = random_plan(
        np.random.default_rng(0), num_experts=8, ranks_per_node=(2,), top_k=2, layer_ids=(1, 2), uneven=True
    )
    refuse(source, plan, tmp_path / "out", MismatchError, "unequal numbers of slots", layout="hf")


@pytest.mark.parametrize(
    "config", [{"n_group": 4}, {"n_group": None}, {"num_expert_group": 2}, {"n_group": 4, "topk_method": "greedy"}]
)
def test_hf_with_torn_groups(tmp_path, make_checkpoint, recipes, plan, config) -> None:
    """A DeepSeek-V3 configuration that does not say `n_group` means 8; it does not read `topk_method`."""
    recipe = replace(recipes["deepseek_v3"], config={"num_experts_per_tok": 2, **config})
    source = make_checkpoint(tmp_path / "m", recipe)
    if config == {"n_group": None}:
        reshard(source, plan, tmp_path / "fine", layout="hf")  # groups of one expert: any permutation keeps them
        return
    refuse(source, plan, tmp_path / "out", MismatchError, "tears them apart", layout="hf")
    reshard(source, plan, tmp_path / "ranks")  # rank files keep the router as it is, so any plan is legal


def test_hf_with_groups_that_deepseek_v2_switched_off(tmp_path, make_checkpoint, recipes, plan) -> None:
    config = {"num_experts_per_tok": 2, "n_group": 4, "topk_method": "greedy"}
    source = make_checkpoint(tmp_path / "m", replace(recipes["deepseek_v3"], model_type="deepseek_v2", config=config))
    assert plan_compilation(source, plan, "hf").layout.family == "qwen"


def test_an_output_that_exists(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    out = tmp_path / "out"
    reshard(source, plan, out)
    refuse(source, plan, out, OutputError, "exists already; give another name or --force")


def test_force_over_a_folder_that_specmoe_did_not_write(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    refuse(source, plan, out, OutputError, "is not a compiled checkpoint, so --force does not replace it", force=True)


def test_a_stranger_where_the_work_would_be_done(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("years of work")
    refuse(source, plan, tmp_path / "out", OutputError, "is in the way and was not written by specmoe")


def test_an_output_without_a_folder_around_it(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    with pytest.raises(OutputError, match="does not exist; create it first"):
        reshard(source, plan, tmp_path / "no" / "out")


def test_output_and_source_inside_each_other(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m" / "n", recipes["mixtral"])
    refuse(source, plan, source / "out", OutputError, "must not contain each other")
    (tmp_path / "link").symlink_to(source)
    refuse(source, plan, tmp_path / "link" / "out", OutputError, "must not contain each other")
    (source.parent / "specmoe.json").write_text("{}")
    refuse(source, plan, source.parent, OutputError, "must not contain each other", force=True)


def test_an_unknown_family_is_named(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", replace(recipes["mixtral"], model_type="gpt2"))
    message = r"the model type 'gpt2', which is not a known family .*experts.N.w3.weight, .*moe.gate.weight$"
    refuse(source, plan, tmp_path / "out", CheckpointError, message)


@pytest.mark.parametrize("model_type", ["mixtral", "llama"])
def test_a_dense_model_of_a_known_or_unknown_family(tmp_path, make_checkpoint, recipes, plan, model_type) -> None:
    mlp = {"model.layers.0.mlp.gate_proj.weight": ("BF16", (6, 4))}
    recipe = replace(recipes["mixtral"], layer_ids=(), model_type=model_type, extra=mlp)
    source = make_checkpoint(tmp_path / "m", recipe)
    message = "has no mixture-of-experts layers; there is nothing to place"
    refuse(source, plan, tmp_path / "out", CheckpointError, message)


def without(recipe: Any, name: str) -> dict[str, Any]:
    return {key: tensor for key, tensor in recipe.tensors.items() if key != name}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: {**t, "gate.surprise": ("F32", (8,))}, "gate.surprise is not known to the family"),
        (lambda t: {**t, "experts.{e}.w9.weight": ("F32", (8,))}, "experts.\\d.w9.weight is not known"),
        (lambda t: {**t, "experts.00.w1.weight": ("BF16", (6, 4))}, "experts.00.w1.weight is not known"),
        (lambda t: {**t, "experts.8.w1.weight": ("BF16", (6, 4))}, "names expert 8, the router knows 8"),
        (lambda t: {**t, "experts.3.w1.scale": ("BF16", (6, 4))}, "expert 0 of 8 has no w1.scale"),
        (lambda t: {**t, "gate.weight": ("BF16", (8,))}, r"shape \[8\], \[experts, hidden\] was expected"),
        (lambda t: {**t, "gate.weight": ("BF16", (7, 4))}, "names expert 7, the router knows 7"),
        (lambda t: {**t, "e_score_correction_bias": ("F32", (7,))}, r"shape \[7\], 8 experts on axis 0"),
        (lambda t: {n: v for n, v in t.items() if "w3" not in n}, "no w3 tensor of the experts"),
        (lambda t: {n: v for n, v in t.items() if "gate" not in n}, "but no router"),
        (lambda t: {n: v for n, v in t.items() if "experts" not in n}, "a router but no experts"),
    ],
)
def test_surprising_tensors(tmp_path, make_checkpoint, recipes, plan, edit, message) -> None:
    recipe = recipes["mixtral"]
    source = make_checkpoint(tmp_path / "m", replace(recipe, tensors=edit(dict(recipe.tensors))))
    refuse(source, plan, tmp_path / "out", CheckpointError, message)


def test_an_expert_of_another_shape(tmp_path, make_checkpoint, recipes, plan) -> None:
    recipe = recipes["mixtral"]
    odd = {"model.layers.2.block_sparse_moe.experts.5.w1.weight": ("F32", (6, 4))}
    source = make_checkpoint(tmp_path / "m", replace(recipe, tensors={}, extra={**recipe.names(), **odd}))
    refuse(source, plan, tmp_path / "out", CheckpointError, r"experts.5.w1.weight is F32 \[6, 4\], expert 0 has BF16")


def test_projections_that_do_not_fit_each_other(tmp_path, make_checkpoint, recipes, plan) -> None:
    recipe = recipes["mixtral"]
    tensors = {**recipe.tensors, "experts.{e}.w3.weight": ("BF16", (6, 5))}
    source = make_checkpoint(tmp_path / "m", replace(recipe, tensors=tensors))
    refuse(source, plan, tmp_path / "out", CheckpointError, "gate_up_proj .* bytes, .* were expected")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("experts.gate_up_proj", ("BF16", (4, 4, 12)), r"shape \[4, 4, 12\], 8 experts first"),
        ("experts.down_proj_bias", ("BF16", ()), r"shape \[\], 8 experts first"),
        ("experts.0.gate_proj.weight", ("BF16", (4,)), "not known to the family 'gpt-oss'"),
    ],
)
def test_fused_experts_of_a_wrong_shape(tmp_path, make_checkpoint, recipes, plan, name, tensor, message) -> None:
    recipe = recipes["gpt_oss"]
    source = make_checkpoint(tmp_path / "m", replace(recipe, tensors={**recipe.tensors, name: tensor}))
    refuse(source, plan, tmp_path / "out", CheckpointError, message)


@pytest.mark.parametrize("value", [0, "3", 2.5, True])
def test_a_configuration_that_makes_no_sense(tmp_path, make_checkpoint, recipes, plan, value) -> None:
    recipe = replace(recipes["mixtral"], num_layers=value)
    source = make_checkpoint(tmp_path / "m", recipe)
    refuse(source, plan, tmp_path / "out", CheckpointError, "num_hidden_layers as")


def test_a_tokenizer_that_links_out_of_the_checkpoint(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    (tmp_path / "secret").write_text("a key")
    (source / "vocab.json").symlink_to(tmp_path / "secret")
    refuse(source, plan, tmp_path / "out", CheckpointError, "leads out of the checkpoint")


def test_a_shard_with_the_plans_name(tmp_path, make_checkpoint, recipes, plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    index = json.loads((source / "model.safetensors.index.json").read_text())
    renamed = {name: file.replace("model-00001-of-00002", "plan") for name, file in index["weight_map"].items()}
    (source / "model-00001-of-00002.safetensors").rename(source / "plan.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": renamed}))
    refuse(source, plan, tmp_path / "out", CheckpointError, "has the name of the plan", layout="hf")


@pytest.mark.parametrize("value", [0, "4", [4]])
def test_expert_groups_that_make_no_sense(tmp_path, make_checkpoint, recipes, plan, value) -> None:
    recipe = replace(recipes["deepseek_v3"], config={"n_group": value})
    source = make_checkpoint(tmp_path / "m", recipe)
    refuse(source, plan, tmp_path / "out", CheckpointError, "states its expert groups as", layout="hf")


VALUES = st.none() | st.integers(-2, 9) | st.text(max_size=3) | st.lists(st.integers(0, 3), max_size=2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(
        st.sampled_from(["model_type", "num_hidden_layers", "num_experts_per_tok", "n_group", "topk_method"]),
        VALUES | st.sampled_from(["deepseek_v3", "mixtral", "greedy"]),
    ),
    nested=st.booleans(),
)
def test_no_configuration_brings_a_traceback(fuzzed, plan, config, nested) -> None:
    (fuzzed / "config.json").write_text(json.dumps({"text_config": config} if nested else config))
    for layout in ("ranks", "hf"):
        with suppress(SpecmoeError):
            plan_compilation(fuzzed, plan, layout)


@pytest.fixture
def fuzzed(tmp_path, make_checkpoint, recipes) -> Path:
    return make_checkpoint(tmp_path / "m", recipes["deepseek_v3"])


def test_a_tokenizer_whose_link_leads_nowhere_is_not_left_out_silently(
    tmp_path, make_checkpoint, recipes, plan
) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    (source / "vocab.json").symlink_to("gone.json")
    refuse(source, plan, tmp_path / "out", CheckpointError, "vocab.json is not a regular file")
