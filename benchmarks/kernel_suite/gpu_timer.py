"""Time GPU work: warm, over rotating inputs larger than the L2 cache, the median of many."""

import time
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
    """Microseconds for one call. graph: inside a CUDA graph, None for work that cannot be captured: what the device
    takes. eager: between events around each call launched from Python: where the host is slower than the device, the
    host's time. host: until the call has returned, the device not waited for. On a CPU there is `host` alone."""

    graph_us: float | None
    eager_us: float | None
    host_us: float

    @property
    def best_us(self) -> float:
        """The device's time for moving rows; on a CPU whatever there is."""
        return self.graph_us or self.eager_us or self.host_us


def num_buffers(bytes_per_call: int, device: torch.device) -> int:
    """How many sets of inputs it takes so that a set has left the L2 cache when its turn comes again."""
    if device.type != "cuda":
        return 2
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return max(4, min(MAX_BUFFERS, -(-3 * l2_bytes // max(bytes_per_call, 1))))


def time_call(call: Call, buffers: int, device: torch.device, *, capture: bool = True) -> Timing:
    """`call(i)` works on the i-th of `buffers` sets of inputs and returns what it made."""
    if device.type != "cuda":
        return Timing(graph_us=None, eager_us=None, host_us=_host(call, buffers, buffers))
    for index in range(WARM_UP_CALLS):
        call(index % buffers)
    torch.cuda.synchronize()
    host_us = _host(call, buffers, EAGER_CALLS)
    torch.cuda.synchronize()
    return Timing(eager_us=_eager(call, buffers), graph_us=_graph(call, buffers) if capture else None, host_us=host_us)


def copy_bandwidth(device: torch.device, size_bytes: int = 1 << 30) -> float:
    """TB/s that a plain copy of `size_bytes` reads and writes together: the most that a kernel can hope for."""
    source = torch.empty(size_bytes if device.type == "cuda" else 1 << 16, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = time_call(lambda _: target.copy_(source), 1, device, capture=False)
    return 2 * source.numel() / timing.best_us / 1e6


def _host(call: Call, buffers: int, calls: int) -> float:
    times = []
    for index in range(calls):
        start = time.perf_counter()
        call(index % buffers)
        times.append(1e6 * (time.perf_counter() - start))
    return median(times)


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
