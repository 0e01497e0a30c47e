"""Every family of the table, on a tiny random model of transformers' own class saved with its published names.

Layout hf: transformers loads it and gives the original's logits; with any one of the router's tensors left as it was it
does not, so the comparison can fail. Layout ranks: each tensor of a rank file is, by name and value, the slots' part
of transformers' own parameter, and specmoe's runtime gives the original's logits.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specmoe.checkpoint import open_checkpoint
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.families import FAMILIES
from specmoe.placement.reshard.moe_model import MoeLayer
from specmoe.placement.reshard.understand import understand
from specmoe.placement.reshard.verify_files import verify_files
from specmoe.routing_config import num_expert_groups
from specmoe.runtime.load import load

NUM_EXPERTS = 8
TINY = json.loads(Path(__file__).with_name("tiny_models.json").read_text())


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model type, what its tiny configuration needs beyond the rest's, and its group-limited routing.

    published: beginnings of names as transformers saves them, and as they are published, where the two differ.
    transposed: fused experts are published the other way round than transformers holds and saves them.
    unloaded: router tensors that transformers saves and then does not load. spread: of the random parameters.
    """

    model_type: str
    parts: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    num_groups: int = 1
    published: Mapping[str, str] = field(default_factory=dict)
    transposed: bool = False
    unloaded: tuple[str, ...] = ()
    spread: float = 0.2


CASES = tuple(Case(model_type=model_type, **case) for model_type, case in TINY["cases"].items())
# An older transformers may not have the newest types; it is looked for in its folder, as importing it takes seconds.
TRANSFORMERS = Path(find_spec("transformers").submodule_search_locations[0])
FOLDERS = {"qwen3_omni_moe_thinker": "qwen3_omni_moe"}


def is_available(case: Case) -> bool:
    folder = FOLDERS.get(case.model_type, case.model_type.removesuffix("_text"))
    return (TRANSFORMERS / "models" / folder).is_dir()


def tiny_config(case: Case) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = dict(TINY["language"])
    for part in case.parts:
        values |= TINY["parts"][part]
    return tiny(CONFIG_MAPPING[case.model_type], {**values, **case.config})


def tiny(config_class: Any, values: Mapping[str, Any]) -> Any:
    """A configuration with those of `values` that it knows; its language model has them too, other towers are tiny."""
    default = config_class()
    towers = {key: type(getattr(default, key)) for key in config_class.sub_configs}
    known = default.to_dict().keys() | config_class.attribute_map.keys()
    chosen = {name: value for name, value in values.items() if name in known}
    for key, tower in towers.items():
        if tower is not type(None) and key not in chosen:
            inner = values if key in ("text_config", "thinker_config") else TINY["parts"]["vision"]
            chosen[key] = tiny(tower, inner).to_dict()
    return config_class(**chosen)


def auto_class(config: Any) -> Any:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    seeing = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if seeing else AutoModelForCausalLM


def randomize(model: torch.nn.Module, spread: float = 0.2) -> None:
    """Every parameter and saved buffer, so that no bias is zero, no two scores tie and a token has several experts."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("tid2eid"):
            scores = torch.rand((tensor.shape[0], NUM_EXPERTS), generator=generator)
            tensor.copy_(scores.argsort(dim=1)[:, : tensor.shape[1]])
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A model as saved, its parameters in memory and its logits on a fixed batch."""

    case: Case
    folder: Path
    state: Mapping[str, torch.Tensor]
    logits: torch.Tensor


@pytest.fixture(scope="module", params=[case for case in CASES if is_available(case)], ids=lambda case: case.model_type)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    case = request.param
    folder = tmp_path_factory.mktemp(case.model_type) / "m"
    torch.manual_seed(0)
    config = tiny_config(case)
    model = auto_class(config).from_config(config).eval()
    randomize(model, case.spread)
    logits, state = logits_of(model), model.state_dict()
    model.save_pretrained(folder, max_shard_size="60KB")
    for before, after in case.published.items():
        publish(folder, before, after)
    if case.transposed:
        transpose_experts(folder)
    return Saved(case=case, folder=folder, state=state, logits=loaded_logits(folder) if case.unloaded else logits)


def publish(folder: Path, before: str, after: str) -> None:
    """Rename the tensors whose names start with `before`, and nothing else."""
    index = folder / "model.safetensors.index.json"
    for path in (index, *folder.glob("*.safetensors")):
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little") + 8 if path != index else len(content)
        start = 0 if path == index else 8
        text = content[start:size].replace(f'"{before}'.encode(), f'"{after}'.encode())
        path.write_bytes((b"" if path == index else len(text).to_bytes(8, "little")) + text + content[size:])


def transpose_experts(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        turned = {n: t.transpose(1, 2).contiguous() if ".experts." in n else t for n, t in tensors.items()}
        save_file(turned, path, metadata={"format": "pt"})


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits


def loaded_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoConfig

    auto = auto_class(AutoConfig.from_pretrained(folder))
    return logits_of(auto.from_pretrained(folder, dtype=torch.float32).eval())


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


def router_tensors(layers: Iterable[MoeLayer], unloaded: Sequence[str]) -> Iterable[str]:
    """Each kind of router tensor that any layer has, in the first that has it, but for the `unloaded`."""
    kinds: dict[str, str] = {}
    for layer in layers:
        for name in (*layer.routers, *layer.expert_numbers):
            kinds.setdefault(name.removeprefix(layer.prefix), name)
    return (name for kind, name in kinds.items() if kind not in unloaded)


def test_a_renumbered_checkpoint_gives_the_same_logits_and_its_router_matters(
    saved: Saved, tmp_path: Path, permutation_plan: Callable[..., PlacementPlan], proven: Callable[..., None]
) -> None:
    layers = understand(open_checkpoint(saved.folder)).layers
    rows = [shuffled(saved.case.num_groups, seed) for seed in range(len(layers))]
    top_k = saved.case.config.get("num_experts_per_tok", 2)
    plan = permutation_plan(rows, ep_size=4, layer_ids=list(layers), top_k=top_k)
    out = tmp_path / "out"
    reshard(saved.folder, plan, out, layout="hf")
    assert verify_files(out, saved.folder).passed
    assert distance(saved.logits, loaded_logits(out)) < 1e-5
    for name in router_tensors(layers.values(), saved.case.unloaded):
        control = Path(shutil.copytree(out, tmp_path / "control", dirs_exist_ok=True))
        put_back(control, saved.folder, name)
        assert distance(saved.logits, loaded_logits(control)) > 1e-4, name
    limit = f", routing limited to {saved.case.num_groups} groups" if saved.case.num_groups > 1 else ""
    unloaded = f"; transformers does not load {', '.join(saved.case.unloaded)}" if saved.case.unloaded else ""
    what = f"same logits, other logits with any router tensor left{limit}{unloaded}"
    proven(saved.case.model_type, "floating point", "hf", what)


def test_rank_files_hold_transformers_own_parameters(
    saved: Saved, tmp_path: Path, random_plan: Callable[..., PlacementPlan], proven: Callable[..., None]
) -> None:
    layers = tuple(understand(open_checkpoint(saved.folder)).layers)
    plan = random_plan(
        np.random.default_rng(0),
        num_experts=NUM_EXPERTS,
        ranks_per_node=(3,),
        top_k=saved.case.config.get("num_experts_per_tok", 2),
        extra_slots=(0, 1, 2),
        layer_ids=layers,
    )
    manifest = reshard(saved.folder, plan, tmp_path / "out")
    assert manifest.expert_format == "fused"
    expected = {
        name
        for name, tensor in saved.state.items()
        if ".experts." in name and tensor.dim() > 1 and layer_of(name) in layers
    }
    for rank in range(plan.ep_size):
        held = load_file(tmp_path / "out" / manifest.rank_file(rank))
        assert set(held) == expected
        slots = slice(*plan.slot_offsets[rank : rank + 2])
        for name, tensor in held.items():
            experts = plan.physical_to_logical[layers.index(layer_of(name)), slots]
            assert torch.equal(tensor, saved.state[name][torch.from_numpy(experts).long()])
    assert verify_files(tmp_path / "out", saved.folder).passed
    ran = run_compiled(saved, tmp_path / "out")
    proven(saved.case.model_type, "floating point", "ranks", f"transformers' own parameters, slot by slot; {ran}")


def run_compiled(saved: Saved, out: Path) -> str:
    """What specmoe's runtime makes of rank files."""
    assert distance(saved.logits, logits_of(load(out, device="cpu", dtype=torch.float32))) < 1e-5
    return "run by specmoe with the same logits"


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


def test_a_configuration_without_groups_means_as_many_as_transformers_takes() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for case in filter(is_available, CASES):
        default = CONFIG_MAPPING[case.model_type]()
        language = getattr(default, "text_config", default)
        groups = getattr(language, "n_group", None) or getattr(language, "num_expert_group", None) or 1
        assert num_expert_groups({"model_type": language.model_type}, "") == groups, case.model_type


def test_every_model_type_of_the_table_is_proven() -> None:
    """Kimi-K2 has DeepSeek-V3's names and no class in transformers; of Qwen3-Omni the thinker is proven here."""
    proven = {case.model_type for case in CASES} | {"kimi_k2", "qwen3_omni_moe"}
    assert {name for family in FAMILIES for name in family.model_types} == proven
