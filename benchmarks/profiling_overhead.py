"""What recording costs over a plain forward pass of the same batches, in the same process, taken in turns.

    python benchmarks/profiling_overhead.py [--device cuda] [--layers 8] [--experts 64] [--top-k 8] [--json]

The model is random and small, which flatters nobody: the larger the model, the smaller the recorder's share.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from transformers import AutoModel, OlmoeConfig, PreTrainedModel

from specmoe.profiler.batches import Batch, make_batches
from specmoe.profiler.experts_interface import RoutingObserver
from specmoe.profiler.forward_pass import record_batch, run_batch
from specmoe.profiler.load_model import choose_device
from specmoe.profiler.profile_limits import BATCH_TOKENS
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routed_layers import RoutedLayers, find_routed_layers
from specmoe.profiler.routing_recorder import RoutingRecorder

VOCAB_SIZE = 32_000
MAX_LENGTH = 1024


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Seconds of the plain and of the profiled passes (medians over batches, summed), and what came of them."""

    device: str
    tokens: int
    plain_seconds: float
    profiled_seconds: float
    finish_seconds: float
    overhead_percent: float
    plain_tokens_per_second: float


def main() -> None:
    options = parse()
    device = choose_device(options.device)
    model = random_model(options, device)
    overhead = measure(model, device, options)
    if options.json:
        print(json.dumps(asdict(overhead)))
        return
    print(f"{overhead.tokens:,} tokens on {overhead.device}, {overhead.plain_tokens_per_second:,.0f} tokens/s plain")
    print(f"plain {overhead.plain_seconds:.2f} s, profiled {overhead.profiled_seconds:.2f} s")
    print(f"overhead {overhead.overhead_percent:.1f} %, and {overhead.finish_seconds:.2f} s once at the end")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def random_model(options: argparse.Namespace, device: torch.device) -> PreTrainedModel:
    config = OlmoeConfig(
        hidden_size=options.hidden,
        intermediate_size=options.hidden // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=options.experts,
        num_experts_per_tok=options.top_k,
        vocab_size=VOCAB_SIZE,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: PreTrainedModel = AutoModel.from_config(config, dtype=dtype).to(device).eval()
    return model


def random_batches(options: argparse.Namespace, device: torch.device) -> list[Batch]:
    """Batches of requests of all lengths, with token ids as skewed as text's."""
    rng = np.random.default_rng(0)
    batch_tokens = BATCH_TOKENS[device.type]
    requests, num_tokens = [], 0
    while num_tokens < 0.9 * options.batches * batch_tokens:
        length = int(rng.integers(16, MAX_LENGTH + 1))
        ids = np.minimum(rng.zipf(1.2, length), VOCAB_SIZE - 1).astype(np.int32)
        requests.append(Request(index=len(requests), domain_id=0, token_ids=ids))
        num_tokens += length
    return list(make_batches(requests, batch_tokens, MAX_LENGTH))


def measure(model: PreTrainedModel, device: torch.device, options: argparse.Namespace) -> Overhead:
    """All batches `rounds` times each way, by turns, after one untimed round."""
    layers = find_routed_layers(model, "the random model", device)
    batches = random_batches(options, device)
    seconds = np.empty((1 + options.rounds, len(batches), 2))
    for turn in range(1 + options.rounds):
        recorder = RoutingRecorder(
            layer_ids=layers.layer_ids,
            num_logical_experts=layers.num_logical_experts,
            top_k=layers.top_k,
            sample_tokens=2**18,
            seed=0,
        )
        for at, batch in enumerate(batches):
            seconds[turn, at, 0] = timed(partial(run_batch, model, batch), device)
            seconds[turn, at, 1] = timed(partial(profiled, model, layers, recorder, batch), device)
    start = time.perf_counter()
    recorder.finish(vocab_size=VOCAB_SIZE, model_fingerprint="", source="")
    finish_seconds = time.perf_counter() - start
    plain, full = np.median(seconds[1:], axis=0).sum(axis=0).tolist()
    tokens = sum(len(batch.token_ids) for batch in batches)
    return Overhead(
        device=str(device),
        tokens=tokens,
        plain_seconds=plain,
        profiled_seconds=full,
        finish_seconds=finish_seconds,
        overhead_percent=100 * (full / plain - 1),
        plain_tokens_per_second=tokens / plain,
    )


def profiled(model: PreTrainedModel, layers: RoutedLayers, recorder: RoutingRecorder, batch: Batch) -> None:
    with RoutingObserver(layers.modules) as observer:
        run_batch(model, batch)
        record_batch(observer.take(batch.mask.size), batch, recorder, layers.num_logical_experts)


def timed(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
