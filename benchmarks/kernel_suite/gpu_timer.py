"""Time GPU work: warm, over rotating inputs larger than the L2 cache, the median of many."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

Call = Callable[[int], object]

WARM_UP_CALLS = 5
EAGER_CALLS = 60
GRAPH_REPLAYS = 20
MAX_BUFFERS = 64


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Microseconds for one call. graph: inside a CUDA graph, None for work that cannot be captured. eager: launched
    from Python one by one, so that it holds the launches' own cost."""

    graph_us: float | None
    eager_us: float

    @property
    def best_us(self) -> float:
        return self.eager_us if self.graph_us is None else self.graph_us


def num_buffers(bytes_per_call: int) -> int:
    """How many sets of inputs it takes so that a set has left the L2 cache when its turn comes again."""
    l2_bytes = torch.cuda.get_device_properties().L2_cache_size
    return max(4, min(MAX_BUFFERS, -(-3 * l2_bytes // max(bytes_per_call, 1))))


def time_call(call: Call, buffers: int, *, capture: bool = True) -> Timing:
    """`call(i)` works on the i-th of `buffers` sets of inputs and returns what it made."""
    for index in range(WARM_UP_CALLS):
        call(index % buffers)
    torch.cuda.synchronize()
    return Timing(eager_us=_eager(call, buffers), graph_us=_graph(call, buffers) if capture else None)


def copy_bandwidth(size_bytes: int = 1 << 30) -> float:
    """TB/s that a plain copy of `size_bytes` reads and writes together: the most that a kernel can hope for."""
    source = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timing = time_call(lambda _: target.copy_(source), 1, capture=False)
    return 2 * size_bytes / timing.eager_us / 1e6


def _eager(call: Call, buffers: int) -> float:
    pairs = []
    for index in range(EAGER_CALLS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call(index % buffers)
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return 1e3 * median(start.elapsed_time(end) for start, end in pairs)


def _graph(call: Call, buffers: int) -> float:
    graph = torch.cuda.CUDAGraph()
    # What a call makes is kept, so that the next call's outputs lie elsewhere.
    kept: list[object] = []
    with torch.cuda.graph(graph):
        for index in range(buffers):
            kept.append(call(index))
    times = []
    for _ in range(GRAPH_REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / buffers)
    return median(times)
