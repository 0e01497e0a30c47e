"""The two models that are served: the demo's, with its own routing, and a wider one of random weights that replays a
recorded trace.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from prediction import Wire
from unmodified import generated_workload, replayed_workload, stated_config
from workload import Workload, gather_requests, request_starts, request_stretches

from specmoe.profiler.import_npz import import_npz
from specmoe.profiler.routing_profile import RoutingProfile

sys.path.append(str(Path(__file__).parents[1] / "loading_suite"))

from random_checkpoint import Shape, write_checkpoint


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many requests are served, of how many tokens, and how many are generated for each."""

    requests: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """checkpoint: the unmodified model; fit: what plans are solved on; workload_file: where `workload` is stored."""

    name: str
    checkpoint: Path
    fit: RoutingProfile
    workload: Workload
    workload_file: Path

    def wire(self, mtu: int) -> Wire:
        """What its rows weigh."""
        config = stated_config(self.checkpoint)
        return Wire(
            hidden_size=config.hidden_size,
            top_k=config.num_experts_per_tok,
            dtype=config.dtype,
            mtu=mtu,
        )


def demo_model(demo: Path, work: Path, size: Size) -> ServedModel:
    """The model that `make demo` trained, on requests that neither it nor the plans have seen."""
    sample = RoutingProfile.load(demo / "heldout.profile").require_sample("this benchmark")
    assert sample.token_ids is not None
    assert sample.request_ids is not None
    starts = request_starts(sample.request_ids, size.prompt_tokens, size.requests)
    prompts = gather_requests(sample.token_ids, starts, size.prompt_tokens).long()
    workload = generated_workload(demo / "model", prompts, size.new_tokens)
    return _stored("demo", demo / "model", RoutingProfile.load(demo / "fit.profile"), workload, work)


def wide_model(trace: Path, fit_trace: Path, work: Path, size: Size, num_layers: int, hidden_size: int) -> ServedModel:
    """A Qwen3-MoE with the trace's experts, `num_layers` of its layers (evenly spaced), and rows of some kilobytes.

    The experts are narrow, so that links and not two cores set the pace. Token ids are numbered anew, so that the
    vocabulary has those that are served, and one more for all others.
    """
    recorded = np.load(trace)
    length = size.prompt_tokens + size.new_tokens
    starts = request_stretches(recorded["request_ids"], length, size.requests)
    rows = ((np.arange(num_layers) + 0.5) * recorded["expert_ids"].shape[1] / num_layers).astype(int)
    tokens = gather_requests(recorded["token_ids"], starts, length)
    expert_ids = gather_requests(recorded["expert_ids"][:, rows], starts, length - 1)
    served_ids, renumbered = torch.unique(tokens, return_inverse=True)
    shape = Shape(
        num_layers=num_layers,
        hidden_size=hidden_size,
        expert_width=64,
        num_experts=int(recorded["num_experts"]),
        top_k=expert_ids.shape[-1],
        num_heads=8,
        head_dim=64,
        vocab_size=len(served_ids) + 1,
    )
    checkpoint = work / "wide-model"
    write_checkpoint(checkpoint, shape)
    fit = _fit_profile(fit_trace, rows, served_ids.numpy(), work / "fit.npz")
    return _stored(
        "wide", checkpoint, fit, replayed_workload(checkpoint, renumbered, expert_ids, size.prompt_tokens), work
    )


def _fit_profile(trace: Path, rows: NDArray[np.int64], served_ids: NDArray[np.int32], out: Path) -> RoutingProfile:
    """The fit trace's layers `rows`, its token ids numbered as those that are served."""
    recorded = np.load(trace)
    ids = recorded["token_ids"]
    place = np.searchsorted(served_ids, ids).clip(max=len(served_ids) - 1)
    np.savez(
        out,
        expert_ids=recorded["expert_ids"][:, rows],
        token_ids=np.where(served_ids[place] == ids, place, len(served_ids)).astype(np.int32),
        request_ids=recorded["request_ids"],
        num_experts=recorded["num_experts"],
        vocab_size=len(served_ids) + 1,
    )
    return import_npz(out)


def _stored(name: str, checkpoint: Path, fit: RoutingProfile, workload: Workload, work: Path) -> ServedModel:
    file = work / f"{name}-workload.safetensors"
    workload.save(file)
    return ServedModel(name=name, checkpoint=checkpoint, fit=fit, workload=workload, workload_file=file)
