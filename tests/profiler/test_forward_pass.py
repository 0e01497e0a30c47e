"""Recording a pass launches and goes on: what waits for the device is the recording thread."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from specmoe.errors import CheckpointError
from specmoe.profiler import forward_pass
from specmoe.profiler.batches import Batch
from specmoe.profiler.experts_interface import PassRouting
from specmoe.profiler.forward_pass import record_batch
from specmoe.profiler.host_copy import HostCopy, copy_to_host
from specmoe.profiler.recording_thread import RecordingThread
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_recorder import RoutingRecorder

L, E, K = 2, 300, 3


class SlowDevice:
    """Stands in for a GPU: what is copied from it is rubbish on the host until `finish`."""

    def __init__(self) -> None:
        self._finished = threading.Event()
        self._late: list[tuple[torch.Tensor, torch.Tensor]] = []

    def copy_to_host(self, *tensors: torch.Tensor) -> HostCopy:
        copies = tuple(torch.full_like(tensor, 7) for tensor in tensors)
        self._late += zip(copies, tensors, strict=True)
        return HostCopy(tensors=copies, arrived=self)

    def synchronize(self) -> None:
        assert self._finished.wait(timeout=60)

    def finish(self) -> None:
        for copy, tensor in self._late:
            copy.copy_(tensor)
        self._finished.set()


def new_recorder(num_experts: int = E) -> RoutingRecorder:
    return RoutingRecorder(
        layer_ids=range(L), num_logical_experts=num_experts, top_k=K, sample_tokens=30, seed=0, domains=["a"]
    )


def finished(recorder: RoutingRecorder) -> RoutingProfile:
    return recorder.finish(vocab_size=100, num_expert_groups=1, model_fingerprint="m", source="s")


def one_pass(device: str = "cpu") -> tuple[PassRouting, np.ndarray[Any, Any], list[Request]]:
    """A padded pass over three requests: its routing, the rows of the tokens, and the requests."""
    rng = np.random.default_rng(0)
    requests = [
        Request(index=index, domain_id=0, token_ids=rng.integers(0, 100, length, dtype=np.int32))
        for index, length in enumerate((16, 20, 24))
    ]
    batch = Batch(requests=requests, padded_length=24)
    ids = torch.from_numpy(rng.random((batch.mask.size, L, E)).argsort(axis=-1)[..., :K].copy())
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    routing = PassRouting(expert_ids=ids.to(device), gate_weights=weights.to(device))
    return routing, np.flatnonzero(batch.mask), requests


def test_a_pass_is_recorded_once_its_routing_is_there_and_the_caller_goes_on_before(monkeypatch) -> None:
    at_once, late, device = new_recorder(), new_recorder(), SlowDevice()
    with RecordingThread(at_once) as recording:
        record_batch(*one_pass(), recording, E)
    monkeypatch.setattr(forward_pass, "copy_to_host", device.copy_to_host)
    with RecordingThread(late) as recording:
        record_batch(*one_pass(), recording, E)
        assert late.num_tokens == 0
        device.finish()
        recording.wait()
    assert finished(late).fingerprint == finished(at_once).fingerprint


def test_nothing_is_read_from_the_device_before_its_copy_has_arrived(monkeypatch) -> None:
    """Tensors of the meta device have no values: whatever would wait for one raises."""
    routing, rows, requests = one_pass("meta")
    copied: list[torch.Tensor] = []

    def copy(*tensors: torch.Tensor) -> HostCopy:
        copied.extend(tensors)
        return copy_to_host(*(torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in tensors))

    monkeypatch.setattr(forward_pass, "copy_to_host", copy)
    recorder: Any = type("Deaf", (), {"wanted": new_recorder().wanted, "add": lambda *_: None})()
    with RecordingThread(recorder) as recording:
        record_batch(routing, rows, requests, recording, E)
    ids, weights = copied[1:]
    assert (ids.device.type, ids.dtype, ids.shape) == ("meta", torch.uint16, (60, L, K))
    assert (weights.dtype, weights.shape) == (torch.float16, (60, L, K))


@pytest.mark.parametrize("wrong", [-1, 256, 300])
def test_an_id_out_of_range_is_named_and_does_not_wrap_to_a_good_one(wrong: int) -> None:
    routing, rows, requests = one_pass()
    narrow = PassRouting(expert_ids=routing.expert_ids % 256, gate_weights=routing.gate_weights)
    narrow.expert_ids[rows[5], 1, 2] = wrong
    recorder = new_recorder(256)
    with RecordingThread(recorder) as recording:
        record_batch(narrow, rows, requests, recording, 256)
        with pytest.raises(CheckpointError, match=r"its layers have 256; experts without weights"):
            recording.wait()
    assert recorder.num_tokens == 0


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for() -> None:
    on_host, on_device = new_recorder(), new_recorder()
    with RecordingThread(on_host) as recording:
        record_batch(*one_pass(), recording, E)
    with RecordingThread(on_device) as recording:
        routing, rows, requests = one_pass("cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            record_batch(routing, rows, requests, recording, E)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert finished(on_device).fingerprint == finished(on_host).fingerprint
