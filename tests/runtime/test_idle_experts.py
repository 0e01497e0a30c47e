"""LongCat-Flash's experts that compute nothing: their tokens go nowhere, and nothing counts as dropped."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import specmoe
from specmoe.errors import UsageError
from specmoe.runtime.capacity import CapacityPolicy

pytestmark = pytest.mark.usefixtures("quiet_transformers")

TOKENS = torch.randint(3, 96, (3, 17), generator=torch.Generator().manual_seed(7))


def test_a_pair_of_an_idle_expert_is_neither_sent_nor_dropped(compiled_model) -> None:
    model = specmoe.load(compiled_model("longcat_flash").compiled["cover"])
    chosen: list[torch.Tensor] = []
    model.model.layers[0].mlp.router.register_forward_hook(lambda *call: chosen.append(call[2][2]))
    with torch.no_grad():
        model(TOKENS)
    counts = model.specmoe.counters()[0]
    busy = int((chosen[0] < 8).sum())
    assert 0 < busy < chosen[0].numel(), "both kinds must be chosen for this to show anything"
    assert (counts.pairs, counts.dropped_pairs) == (busy, 0)


def test_weights_need_not_be_stored_for_idle_experts(compiled_model, tmp_path) -> None:
    """As published: transformers saves rows of its parameters that it never reads."""
    made = compiled_model("longcat_flash")
    tensors = load_file(made.source / "model.safetensors")
    idle = [name for name in tensors if any(f".experts.{number}." in name for number in (8, 9, 10, 11))]
    assert idle
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(json.loads((made.source / "config.json").read_text())))
    kept = {name: tensor for name, tensor in tensors.items() if name not in idle}
    save_file(kept, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    specmoe.reshard(tmp_path / "source", made.plans["static"], tmp_path / "out")
    with torch.no_grad():
        published, saved = (specmoe.load(out)(TOKENS).logits for out in (tmp_path / "out", made.compiled["static"]))
    assert torch.equal(published, saved)


def test_a_capacity_is_refused(compiled_model) -> None:
    with pytest.raises(UsageError, match="may choose fewer than 3 experts"):
        specmoe.load(compiled_model("longcat_flash").compiled["static"], capacity=CapacityPolicy(1.0))
