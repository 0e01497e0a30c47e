"""Model types that a tiny model cannot stand for, and a language model beside other towers: proven by bytes."""

from dataclasses import dataclass, replace

import pytest

from specmoe.errors import CheckpointError
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.verify_files import verify_files

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
PER_EXPERT = {
    "experts.{e}.gate_proj.weight": ("BF16", (6, 4)),
    "experts.{e}.up_proj.weight": ("BF16", (6, 4)),
    "experts.{e}.down_proj.weight": ("BF16", (4, 6)),
}
FUSED = {"experts.gate_up_proj": ("BF16", (8, 4, 12)), "experts.down_proj": ("BF16", (8, 6, 4))}
VISION = {
    "talker.model.layers.1.mlp.gate.weight": ("F32", (2, 3)),
    "vision_tower.blocks.1.mlp.experts.0.weight": ("F32", (3,)),
    "vision_tower.layers.1.mlp.gate.weight": ("F32", (2,)),
}


@dataclass(frozen=True, kw_only=True)
class Nested:
    model_type: str
    prefix: str
    experts: dict[str, tuple[str, tuple[int, ...]]]


CASES = (
    Nested(model_type="kimi_k2", prefix="model.", experts=PER_EXPERT),
    Nested(model_type="qwen3_omni_moe", prefix="thinker.model.", experts=PER_EXPERT),
    Nested(model_type="kimi_k25", prefix="language_model.model.", experts=PER_EXPERT),
    Nested(model_type="qwen3_5_moe", prefix="model.language_model.", experts=FUSED),
)
MEMORY = {"language_model.model.": "model.language_model.", "thinker.model.": "thinker.model.language_model."}


def nested_config(model_type: str) -> dict[str, object]:
    config = {"text_config": {"num_hidden_layers": 3, "num_experts_per_tok": 2, "n_group": 1}}
    return {"thinker_config": config} if model_type == "qwen3_omni_moe" else config


@pytest.mark.parametrize("layout", ["ranks", "hf"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model_type)
def test_the_language_model_is_compiled_and_the_rest_carried_along(
    tmp_path, make_checkpoint, recipes, permutation_plan, proven, case, layout
) -> None:
    recipe = replace(
        recipes["deepseek_v3"],
        model_type=case.model_type,
        prefix=f"{case.prefix}layers.{{layer}}.mlp.",
        tensors={"gate.weight": ("BF16", (8, 4)), **case.experts},
        config=nested_config(case.model_type),
        extra=VISION,
    )
    source = make_checkpoint(tmp_path / "m", recipe)
    manifest = reshard(source, permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2)), tmp_path / "out", layout=layout)
    assert verify_files(tmp_path / "out", source).passed
    if layout == "ranks":
        assert manifest.expert_modules[0] == f"{MEMORY.get(case.prefix, case.prefix)}layers.1.mlp.experts"
    proven(case.model_type, "bfloat16, by bytes", layout, "the language model's bytes, other towers unchanged")


def test_two_language_models_in_one_checkpoint_are_refused(
    tmp_path, make_checkpoint, recipes, permutation_plan
) -> None:
    recipe = recipes["deepseek_v3"]
    twin = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in recipe.names().items()}
    source = make_checkpoint(tmp_path / "m", replace(recipe, extra=twin))
    plan = permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))
    with pytest.raises(CheckpointError, match="has two blocks"):
        reshard(source, plan, tmp_path / "out")
