"""Every family of the table, on a tiny random model of transformers' own class saved with its published names.

Layout hf: transformers loads it and gives the original's logits; with any one of the router's tensors left as it was it
does not, so the comparison can fail. Layout ranks: each tensor of a rank file is, by name and value, the slots' part
of transformers' own parameter.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specmoe.checkpoint import open_checkpoint
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.families import FAMILIES
from specmoe.placement.reshard.understand import understand
from specmoe.placement.reshard.verify_files import verify_files

NUM_EXPERTS = 8
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": NUM_EXPERTS,
    "num_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
LATENT_ATTENTION = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
INDEXER = {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 4}
MAMBA = {
    "mamba_num_heads": 8,
    "mamba_n_heads": 8,
    "mamba_head_dim": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model type, what its tiny configuration needs beyond `TINY`, and its group-limited routing."""

    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    num_groups: int = 1


GROUPS = {"n_group": 4, "topk_group": 2}

CASES = (
    Case(model_type="mixtral"),
    Case(model_type="phimoe"),
    Case(model_type="minimax"),
    Case(model_type="minimax_m2"),
    Case(model_type="olmoe"),
    Case(model_type="flex_olmo"),
    Case(model_type="qwen2_moe", config={"mlp_only_layers": [1]}),
    Case(model_type="qwen3_moe"),
    Case(model_type="qwen3_next", config=LINEAR_ATTENTION),
    Case(model_type="qwen3_5_moe_text", config=LINEAR_ATTENTION),
    Case(
        model_type="deepseek_v2",
        config={**LATENT_ATTENTION, **GROUPS, "topk_method": "group_limited_greedy"},
        num_groups=4,
    ),
    Case(model_type="deepseek_v3", config={**LATENT_ATTENTION, **GROUPS}, num_groups=4),
    Case(model_type="deepseek_v32", config={**LATENT_ATTENTION, **INDEXER, **GROUPS}, num_groups=4),
    Case(model_type="glm4_moe"),
    Case(model_type="glm4_moe_lite", config=LATENT_ATTENTION),
    Case(model_type="glm_moe_dsa", config={**LATENT_ATTENTION, **INDEXER}),
    Case(model_type="dots1", config={"n_shared_experts": 1, **GROUPS}, num_groups=4),
    Case(model_type="solar_open"),
    Case(model_type="exaone_moe"),
    Case(model_type="ernie4_5_moe"),
    Case(model_type="cohere2_moe"),
    Case(model_type="mellum"),
    Case(model_type="laguna"),
    Case(model_type="mimo_v2_flash"),
    Case(model_type="bailing_hybrid", config={**LATENT_ATTENTION, **GROUPS}, num_groups=4),
    Case(model_type="kimi_linear", config={**LATENT_ATTENTION, "linear_head_dim": 8, "linear_num_heads": 4}),
    Case(model_type="hunyuan_v1_moe"),
    Case(model_type="afmoe", config={"num_dense_layers": 1}),
    Case(model_type="hy_v3"),
    Case(model_type="gpt_oss"),
    Case(model_type="llama4_text", config={"intermediate_size_mlp": 24}),
    Case(model_type="granitemoe"),
    Case(model_type="granitemoeshared"),
    Case(model_type="granitemoehybrid", config=MAMBA),
    Case(model_type="jamba", config={"attn_layer_offset": 1, "attn_layer_period": 2, "use_mamba_kernels": False}),
    Case(
        model_type="lfm2_moe",
        config={"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    ),
    Case(
        model_type="nemotron_h",
        config={**MAMBA, "moe_shared_expert_intermediate_size": 16, "moe_latent_size": 16},
    ),
)
# An older transformers may not have the newest types; it is looked for in its folder, as importing it takes seconds.
TRANSFORMERS = Path(find_spec("transformers").submodule_search_locations[0])
AVAILABLE = [case for case in CASES if (TRANSFORMERS / "models" / case.model_type.removesuffix("_text")).is_dir()]


def tiny_config(case: Case) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[case.model_type]
    known = config_class()
    return config_class(**{name: value for name, value in {**TINY, **case.config}.items() if hasattr(known, name)})


def randomize(model: torch.nn.Module) -> None:
    """Every parameter and saved buffer, so that no bias is zero and no two scores tie."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A model as saved, its parameters in memory and its logits on a fixed batch."""

    case: Case
    folder: Path
    state: Mapping[str, torch.Tensor]
    logits: torch.Tensor


@pytest.fixture(scope="module", params=AVAILABLE, ids=lambda case: case.model_type)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp(request.param.model_type) / "m"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(request.param)).eval()
    randomize(model)
    model.save_pretrained(folder, max_shard_size="60KB")
    return Saved(case=request.param, folder=folder, state=model.state_dict(), logits=logits_of(model))


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits


def loaded_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference, relative to the largest logit."""
    return float((first - second).abs().max() / first.abs().max())


def shuffled(num_groups: int, seed: int) -> list[int]:
    """A random order of experts that keeps groups, and that moves every expert."""
    rng = np.random.default_rng(seed)
    size = NUM_EXPERTS // num_groups
    while True:
        order = [int(g * size + e) for g in rng.permutation(num_groups) for e in rng.permutation(size)]
        if all(new != old for new, old in enumerate(order)):
            return order


def put_back(folder: Path, source: Path, name: str) -> None:
    """Give tensor `name` in `folder` the bytes that it has in `source`."""
    ours, theirs = open_checkpoint(folder).tensors[name], open_checkpoint(source).tensors[name]
    content = bytearray(ours.file.read_bytes())
    content[ours.begin : ours.end] = theirs.file.read_bytes()[theirs.begin : theirs.end]
    ours.file.write_bytes(content)


def test_a_renumbered_checkpoint_gives_the_same_logits_and_its_router_matters(
    saved: Saved, tmp_path: Path, permutation_plan: Callable[..., PlacementPlan], proven: Callable[..., None]
) -> None:
    layers = understand(open_checkpoint(saved.folder)).layers
    rows = [shuffled(saved.case.num_groups, seed) for seed in range(len(layers))]
    plan = permutation_plan(rows, ep_size=4, layer_ids=list(layers))
    out = tmp_path / "out"
    reshard(saved.folder, plan, out, layout="hf")
    assert verify_files(out, saved.folder).passed
    assert distance(saved.logits, loaded_logits(out)) < 1e-5
    for name in next(iter(layers.values())).routers:
        control = Path(shutil.copytree(out, tmp_path / "control", dirs_exist_ok=True))
        put_back(control, saved.folder, name)
        assert distance(saved.logits, loaded_logits(control)) > 1e-3, name
    limit = f", routing limited to {saved.case.num_groups} groups" if saved.case.num_groups > 1 else ""
    proven(
        saved.case.model_type, "floating point", "hf", f"same logits, other logits with any router tensor left{limit}"
    )


def test_rank_files_hold_transformers_own_parameters(
    saved: Saved, tmp_path: Path, random_plan: Callable[..., PlacementPlan], proven: Callable[..., None]
) -> None:
    layers = tuple(understand(open_checkpoint(saved.folder)).layers)
    plan = random_plan(
        np.random.default_rng(0),
        num_experts=NUM_EXPERTS,
        ranks_per_node=(3,),
        top_k=2,
        extra_slots=(0, 1, 2),
        layer_ids=layers,
    )
    manifest = reshard(saved.folder, plan, tmp_path / "out")
    assert manifest.expert_format == "fused"
    expected = {name for name in saved.state if ".experts." in name and layer_of(name) in layers}
    for rank in range(plan.ep_size):
        held = load_file(tmp_path / "out" / manifest.rank_file(rank))
        assert set(held) == expected
        slots = slice(*plan.slot_offsets[rank : rank + 2])
        for name, tensor in held.items():
            experts = plan.physical_to_logical[layers.index(layer_of(name)), slots]
            assert torch.equal(tensor, saved.state[name][torch.from_numpy(experts).long()])
    assert verify_files(tmp_path / "out", saved.folder).passed
    proven(saved.case.model_type, "floating point", "ranks", "transformers' own parameters, slot by slot")


def layer_of(name: str) -> int:
    return int(name.partition("layers.")[2].split(".")[0])


def test_a_permutation_that_tears_groups_would_change_the_output(
    tmp_path: Path, permutation_plan: Callable[..., PlacementPlan]
) -> None:
    """What `hf` refuses: done by hiding the groups from reshard and telling the model of them again."""
    from transformers import AutoModelForCausalLM

    case = next(case for case in CASES if case.model_type == "deepseek_v3")
    model = AutoModelForCausalLM.from_config(tiny_config(case)).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "m")
    config_file = tmp_path / "m" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "n_group": 1}))
    rows = [[0, 2, 4, 6, 1, 3, 5, 7]] * 2
    reshard(tmp_path / "m", permutation_plan(rows, ep_size=2, layer_ids=[1, 2]), tmp_path / "out", layout="hf")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert distance(logits_of(model), loaded_logits(tmp_path / "out")) > 1e-3


def test_every_model_type_of_the_table_is_proven() -> None:
    """Kimi-K2 has DeepSeek-V3's names and no class in transformers; multimodal types hold a text model proven here."""
    same_names = {"kimi_k2", "kimi_k25", "llama4", "qwen3_5_moe"}
    proven = {case.model_type for case in CASES}
    assert {name for family in FAMILIES for name in family.model_types} == proven | same_names
