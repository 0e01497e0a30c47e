"""What a process reads and holds: its own ranks' files, its own heads of the shared tensors, and nothing twice."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import specmoe
from specmoe.runtime.attention_split import own_slices
from specmoe.runtime.build_model import build_model
from specmoe.runtime.compiled_files import CompiledFiles
from specmoe.runtime.mapped_tensors import MappedFile
from specmoe.runtime.workers import Workers

pytestmark = pytest.mark.usefixtures("quiet_transformers")

WIDE = {
    "hidden_size": 2048, "head_dim": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1
}  # fmt: skip
# The kernel maps what it keeps in one piece around each page that is read, up to a huge page.
AROUND = 2 * 2**20


def resident_bytes(path: Path) -> int:
    """How much of the mapped `path` this process has read."""
    found, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            is_inside = line.endswith(str(path))
        elif is_inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def process_of_two(number):
    return Workers(ep_size=2, process=number, world_size=2, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory, random_plan):
    """A compiled model of two ranks whose attention and experts are large beside a page."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    folder = tmp_path_factory.mktemp("wide")
    experts = {"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(vocab_size=64, intermediate_size=64, **experts, **WIDE)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "source")
    plan = random_plan(np.random.default_rng(0), num_experts=4, ranks_per_node=(2,), top_k=2)
    tables = {"token_to_rank": np.zeros((1, 64), np.int16), "token_confidence": np.zeros((1, 64), np.float16)}
    specmoe.reshard(folder / "source", replace(plan, attention="tp", **tables), folder / "out")
    return folder / "out"


def test_under_tp_a_process_reads_its_heads_and_its_ranks_only(wide_model):
    files = CompiledFiles.open(wide_model)
    model = build_model(files, process_of_two(1), None, None)
    (shared,) = (wide_model / name for name in files.manifest.shared_files)
    own, other = (wide_model / files.manifest.rank_file(rank) for rank in (1, 0))
    # The columns of o_proj are copied at once, the rest when it is used.
    column_bytes = 2048 * 2048 * 4
    assert resident_bytes(shared) <= column_bytes + 2 * AROUND
    assert resident_bytes(own) <= AROUND
    attention = model.model.layers[0].self_attn
    used = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert [tuple(weight.shape) for weight in used] == [(1024, 2048), (512, 2048), (512, 2048)]
    assert tuple(attention.o_proj.weight.shape) == (2048, 1024)
    before = resident_bytes(shared)
    assert all(float(weight.sum()) for weight in used)
    read = sum(weight.nbytes for weight in used)
    # Both ends of three tensors; read whole they would be twice as much.
    assert read - 6 * AROUND <= resident_bytes(shared) - before <= read + 6 * AROUND
    assert resident_bytes(other) == 0


def test_the_slices_of_all_processes_are_the_whole(wide_model):
    files = CompiledFiles.open(wide_model)
    whole = files.shared_tensors()
    parts = [own_slices(whole, process_of_two(number)) for number in range(2)]
    attention = "model.layers.0.self_attn."
    for name, tensor in whole.items():
        first, second = (part[name] for part in parts)
        if name.startswith(attention) and "norm" not in name:
            axis = 1 if "o_proj" in name else 0
            assert torch.equal(torch.cat([first, second], dim=axis), tensor)
        else:
            assert first is tensor
            assert second is tensor
    rows = f"{attention}q_proj.weight"
    assert parts[1][rows].untyped_storage().data_ptr() == whole[rows].untyped_storage().data_ptr(), "a view"


@pytest.mark.parametrize(
    ("name", "shape", "part"),
    [
        ("model.layers.3.self_attn.q_proj.bias", (8,), [4, 5, 6, 7]),
        ("model.layers.3.self_attn.sinks", (8,), [4, 5, 6, 7]),
        ("language_model.model.layers.3.self_attn.kv_b_proj.weight", (4, 1), [[2], [3]]),
        ("model.layers.3.self_attn.o_proj.bias", (2,), [0, 1]),
        ("model.layers.3.self_attn.q_a_proj.weight", (2, 1), [[0], [1]]),
        ("vision.layers.3.attention.q_proj.weight", (2, 1), [[0], [1]]),
    ],
)
def test_what_is_cut_is_known_by_its_name(name, shape, part):
    tensor = torch.arange(int(np.prod(shape))).view(shape)
    assert own_slices({name: tensor}, process_of_two(1))[name].tolist() == part


def test_several_ranks_of_a_process_are_written_once_and_their_files_let_go(wide_model):
    files = CompiledFiles.open(wide_model)
    both = Workers(ep_size=2, process=0, world_size=1, device=torch.device("cpu"))
    model = build_model(files, both, None, None)
    experts = model.model.layers[0].mlp.experts
    paths = [wide_model / name for name in files.manifest.rank_files]
    expected = [MappedFile(path).tensors["model.layers.0.mlp.experts.down_proj"] for path in paths]
    assert torch.equal(experts.down_proj, torch.cat(expected))
    del expected
    assert sum(resident_bytes(path) for path in paths) <= 2 * AROUND


def test_a_tensor_that_was_forgotten_is_read_again(tmp_path):
    values = torch.arange(2**22, dtype=torch.int32)
    save_file({"a": values}, tmp_path / "f.safetensors")
    file = MappedFile(tmp_path / "f.safetensors")
    assert torch.equal(file.tensors["a"], values)
    file.forget("a")
    assert resident_bytes(tmp_path / "f.safetensors") <= AROUND
    assert torch.equal(file.tensors["a"], values)
