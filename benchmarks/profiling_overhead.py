"""What recording costs over a plain forward pass of the same batches, in the same process, taken in turns.

    OMP_NUM_THREADS=1 python benchmarks/profiling_overhead.py --layers 4 --hidden 256 --experts 32 --top-k 4
    python benchmarks/profiling_overhead.py --device cuda --layers 16 --hidden 2048 --experts 64 --top-k 8 --batches 8

The model is random. On a CPU it is small, which flatters nobody: the larger the model, the smaller the recorder's
share. On a GPU a small one would measure the launches: the second command has OLMoE-1B-7B's size, 14 GB.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from transformers import AutoModel, OlmoeConfig, PreTrainedModel

from specmoe.profiler.batches import Batch, make_batches
from specmoe.profiler.experts_interface import RoutingObserver
from specmoe.profiler.forward_pass import record_batch, run_batch
from specmoe.profiler.load_model import choose_device
from specmoe.profiler.profile_options import BATCH_TOKENS
from specmoe.profiler.recording_thread import RecordingThread
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routed_layers import RoutedLayers, find_routed_layers
from specmoe.profiler.routing_recorder import RoutingRecorder

VOCAB_SIZE = 32_000
MAX_LENGTH = 1024


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """overhead_percent: the median, over pairs of a plain and a profiled run of the same, of what the second adds. A
    pair is of one batch on a CPU, and of all on a GPU, where a batch is recorded while the next one runs.

    recording_percent: on a CPU, the recorder's own time over that of the plain runs, the median over rounds: far less
    noisy, and with what is done once at the end. clock: what the seconds are of (`clock_of`). plain_seconds: medians
    over rounds, summed.
    """

    device: str
    clock: str
    tokens: int
    pairs: int
    plain_seconds: float
    plain_tokens_per_second: float
    overhead_percent: float
    overhead_percent_quartiles: tuple[float, float]
    recording_percent: float | None
    finish_seconds: float


def main() -> None:
    options = parse()
    device = choose_device(options.device)
    model = random_model(options, device)
    overhead = measure(model, device, options)
    if options.json:
        print(json.dumps(asdict(overhead)))
        return
    low, high = overhead.overhead_percent_quartiles
    rate = f"{overhead.plain_tokens_per_second:,.0f} plain per {overhead.clock} second"
    print(f"{overhead.tokens:,} tokens on {overhead.device}, {rate}")
    print(f"overhead {overhead.overhead_percent:.1f} % (quartiles {low:.1f} to {high:.1f} %, {overhead.pairs} pairs)")
    if overhead.recording_percent is not None:
        print(f"recording alone {overhead.recording_percent:.2f} %, what is done at the end included")
    print(f"{overhead.finish_seconds:.3f} s once at the end")


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
    with device:
        model: PreTrainedModel = AutoModel.from_config(config, dtype=dtype).eval()
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
    """All batches `rounds` times each way after one untimed round; the two of a pair take turns in going first."""
    layers = find_routed_layers(model, "the random model", device)
    batches = random_batches(options, device)
    clock = clock_of(device)
    groups = [batches] if device.type == "cuda" else [[batch] for batch in batches]
    plain, profiled = np.empty((2, 1 + options.rounds, len(groups)))
    recording, finishing = np.empty((2, 1 + options.rounds))
    for turn in range(1 + options.rounds):
        profiling = Profiling(model, layers, device)
        for at, group in enumerate(groups):
            ways = [(plain, partial(run_all, model, group, device)), (profiled, partial(profiling.run, group))]
            for seconds, way in ways if (turn + at) % 2 else reversed(ways):
                seconds[turn, at] = timed(way, device)
        start = clock()
        profiling.recorder.finish(vocab_size=VOCAB_SIZE, num_expert_groups=1, model_fingerprint="", source="")
        finishing[turn] = clock() - start
        recording[turn] = profiling.seconds + finishing[turn]
    ratios = profiled[1:] / plain[1:]
    plain_seconds = float(np.median(plain[1:], axis=0).sum())
    tokens = sum(len(batch.token_ids) for batch in batches)
    recorded = float(100 * np.median(recording[1:] / plain[1:].sum(axis=1)))
    low, middle, high = (100 * (np.quantile(ratios, [0.25, 0.5, 0.75]) - 1)).tolist()
    return Overhead(
        device=str(device),
        clock="wall" if device.type == "cuda" else "CPU",
        tokens=tokens,
        pairs=ratios.size,
        plain_seconds=plain_seconds,
        plain_tokens_per_second=tokens / plain_seconds,
        overhead_percent=middle,
        overhead_percent_quartiles=(low, high),
        recording_percent=recorded if device.type != "cuda" else None,
        finish_seconds=float(np.median(finishing[1:])),
    )


class Profiling:
    """Profiled passes, as the profiler makes them; `seconds`: of recording, on a CPU, where nothing else runs then."""

    def __init__(self, model: PreTrainedModel, layers: RoutedLayers, device: torch.device) -> None:
        self._model = model
        self._layers = layers
        self._device = device
        self.seconds = 0.0
        self.recorder = RoutingRecorder(
            layer_ids=layers.layer_ids,
            num_logical_experts=layers.num_logical_experts,
            top_k=layers.top_k,
            sample_tokens=2**18,
            seed=0,
            domains=["text"],
        )

    def run(self, batches: Sequence[Batch]) -> None:
        with RoutingObserver(self._layers.modules) as observer, RecordingThread(self.recorder) as recording:
            for batch in batches:
                run_batch(self._model, batch, self._device)
                start = clock_of(self._device)()
                routing, rows = observer.take(batch.mask.size), np.flatnonzero(batch.mask)
                record_batch(routing, rows, batch.requests, recording, self._layers.num_logical_experts)
                if self._device.type != "cuda":
                    recording.wait()
                self.seconds += clock_of(self._device)() - start
            recording.wait()


def run_all(model: PreTrainedModel, batches: Sequence[Batch], device: torch.device) -> None:
    for batch in batches:
        run_batch(model, batch, device)


def timed(run: Callable[[], None], device: torch.device) -> float:
    clock = clock_of(device)
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def clock_of(device: torch.device) -> Callable[[], float]:
    """Wall time on a GPU; on a CPU that of all threads of this process, which others on the machine do not change."""
    return time.perf_counter if device.type == "cuda" else time.process_time


if __name__ == "__main__":
    main()
