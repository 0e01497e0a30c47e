"""Capture a decode step of fixed shapes in a CUDA graph, replay it on other values, and compare with the plain step.

    python benchmarks/gpu_suite/static_step.py block|model [--dry-run]

block: an MoE layer, from router to weighted sum; model: a whole decode step with a cache of fixed size. On a CPU, in a
dry run, the step is run again where a GPU replays it. Prints one line of JSON.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, StaticCache
from transformers.utils import logging

import specmoe
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.runtime.static_decode import StaticDecode

RANKS, LAYERS, EXPERTS, TOP_K, HIDDEN, REQUESTS, PROMPT = 4, 2, 16, 4, 256, 8, 5
REPLAYS = 50

Step = Callable[[], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["block", "model"])
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    device = torch.device("cpu" if options.dry_run else "cuda")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = compiled_model(Path(folder), device)
        print(json.dumps({"part": options.part, **PARTS[options.part](model, device)}))


def compiled_model(folder: Path, device: torch.device) -> torch.nn.Module:
    """A small random model, compiled for ranks that this one process holds, loaded for steps of fixed shapes."""
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, intermediate_size=HIDDEN, moe_intermediate_size=HIDDEN // 2, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, num_experts=EXPERTS, num_experts_per_tok=TOP_K,
        vocab_size=512, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    slots = np.arange(EXPERTS, dtype=np.int32)
    plan = PlacementPlan(
        topology=Topology(ranks_per_node=(RANKS,)), num_logical_experts=EXPERTS, top_k=TOP_K, attention="dp",
        replica_choice="static", layer_ids=np.arange(LAYERS, dtype=np.int32),
        physical_to_logical=np.tile(slots, (LAYERS, 1)), rank_of_physical=slots // (EXPERTS // RANKS),
        dispatch_slot=np.tile(slots, (LAYERS, RANKS, 1)), method="linear",
    )  # fmt: skip
    specmoe.reshard(folder / "model", plan, folder / "compiled")
    return specmoe.load(folder / "compiled", device=device, decode=StaticDecode(max_tokens=64))


def block_step(model: torch.nn.Module, device: torch.device) -> dict[str, object]:
    block = model.model.layers[0].mlp
    hidden = torch.randn((REQUESTS, 1, HIDDEN), dtype=torch.bfloat16, device=device)

    def step() -> torch.Tensor:
        out = block(hidden)
        return out[0] if isinstance(out, tuple) else out

    replay = captured(step, device)
    hidden.neg_()
    return {"largest_difference": difference(replay(), step()), **speeds(step, replay, device)}


def model_step(model: torch.nn.Module, device: torch.device) -> dict[str, object]:
    prompt = torch.randint(3, 512, (REQUESTS, PROMPT), device=device)
    token = torch.randint(3, 512, (REQUESTS, 1), device=device)
    plain = model(torch.cat([prompt, token], dim=1)).logits[:, -1:]
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(prompt, past_key_values=cache, use_cache=True)
    position = torch.full((REQUESTS, 1), PROMPT, device=device)
    # Every position may be looked at that is not after the token's.
    mask = (torch.arange(64, device=device) <= PROMPT).expand(REQUESTS, 1, 1, 64)
    start = {layer: (layer.keys.clone(), layer.values.clone()) for layer in cache.layers}

    def step() -> torch.Tensor:
        return model(token, past_key_values=cache, use_cache=True, attention_mask=mask, position_ids=position).logits

    def again() -> None:
        for layer, (keys, values) in start.items():
            layer.keys.copy_(keys)
            layer.values.copy_(values)
            if isinstance(getattr(layer, "cumulative_length", None), torch.Tensor):
                layer.cumulative_length.fill_(PROMPT)

    replay = captured(step, device, again)
    again()
    return {"largest_difference": difference(replay(), plain)}


PARTS = {"block": block_step, "model": model_step}


def captured(step: Step, device: torch.device, again: Callable[[], None] = lambda: None) -> Step:
    """What replays `step` as captured; on a CPU the step itself. again: sets its state back before it is run."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            again()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    again()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference as a share of the largest value; an error where bfloat16 does not account for it."""
    value = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    if not value < 3e-2:
        raise SystemExit(f"the replayed step differs from the plain one by {value:.3g} of its largest value")
    return value


def speeds(step: Step, replay: Step, device: torch.device) -> dict[str, object]:
    return {"plain_us": wall_us(step, device), "replayed_us": wall_us(replay, device)}


def wall_us(step: Step, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    for _ in range(REPLAYS if device.type == "cuda" else 1):
        step()
    wait()
    return 1e6 * (time.perf_counter() - start) / (REPLAYS if device.type == "cuda" else 1)


if __name__ == "__main__":
    main()
