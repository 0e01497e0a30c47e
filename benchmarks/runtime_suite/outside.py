"""The outside baselines: transformers' own expert parallelism, and DeepSpeed's MoE layer in the same model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from replay import Replay, routers_of
from workload import Workload


class OutsideServer:
    """What both outside baselines share: requests dealt out in turn (`dp`), or all on every process (`tp`)."""

    def __init__(self, model: Any, replay: Replay | None, *, shares_requests: bool) -> None:
        self.model = model
        self.replay = replay
        self._shares_requests = shares_requests

    def own_requests(self, workload: Workload) -> list[int]:
        if self._shares_requests:
            return list(range(workload.num_requests))
        return list(range(dist.get_rank(), workload.num_requests, dist.get_world_size()))

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def counted(self) -> dict[str, int]:
        return {}


def transformers_tensor_parallel(checkpoint: str, workload: Workload) -> OutsideServer:
    """Heads split by the model's own plan; experts by `ep_plan`, which sums the ranks' parts (`all_reduce`)."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    size = dist.get_world_size()
    distributed = DistributedConfig(tp_size=size, tp_plan="auto", ep_size=size)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", distributed_config=distributed).eval()
    return OutsideServer(model, _replay(model, workload), shares_requests=True)


def transformers_data_parallel(checkpoint: str, workload: Workload) -> OutsideServer:
    """All but the experts on every rank; each (token, expert) pair to the expert's rank (`all_to_all`).

    Put in place by hand: `DistributedConfig` has no way to keep the dense layers whole on every rank of such a group
    (it shards them with FSDP, which gathers their weights in every pass).
    """
    from transformers import AutoModelForCausalLM
    from transformers.distributed.expert_parallel import AllToAllEP

    size, rank = dist.get_world_size(), dist.get_rank()
    mesh = dist.device_mesh.init_device_mesh("cpu", (size, 1), mesh_dim_names=("ep", "tp"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
    for experts in _experts_of(model):
        for name, parameter in list(experts.named_parameters(recurse=False)):
            part = parameter.detach().chunk(size)[rank].clone()
            setattr(experts, name, torch.nn.Parameter(part, requires_grad=False))
        experts.num_experts //= size
        experts.forward = AllToAllEP(experts, mesh["ep"], mesh["tp"])
    return OutsideServer(model, _replay(model, workload), shares_requests=False)


def deepspeed_data_parallel(checkpoint: str, workload: Workload) -> OutsideServer:
    """`deepspeed.moe.layer.MoE` in place of every MoE block, without dropping: its buffers fit the fullest expert."""
    import deepspeed
    from deepspeed.moe.layer import MoE
    from deepspeed.moe.sharded_moe import topkgating
    from transformers import AutoModelForCausalLM

    deepspeed.init_distributed(dist_backend="gloo")
    size, rank = dist.get_world_size(), dist.get_rank()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
    replay = _replay(model, workload)
    for layer in model.get_decoder().layers:
        block = layer.mlp
        num_experts, top_k = block.gate.num_experts, block.gate.top_k
        moe = MoE(
            model.config.hidden_size, torch.nn.Identity(), num_experts, ep_size=size, k=top_k, drop_tokens=False
        ).to(model.dtype)
        moe.set_deepspeed_parallelism()
        own = range(rank * num_experts // size, (rank + 1) * num_experts // size)
        moe.deepspeed_moe.experts.deepspeed_experts = torch.nn.ModuleList(
            [_OneExpert(block.experts, expert) for expert in own]
        )
        moe.deepspeed_moe.gate.forward = _DeepspeedGate(block.gate, moe.deepspeed_moe.gate, topkgating)
        layer.mlp = _OutputOnly(moe.eval())
    return OutsideServer(model, replay, shares_requests=False)


class _OneExpert(torch.nn.Module):
    """One expert of transformers' fused experts module, for rows of any shape [..., H]."""

    def __init__(self, experts: Any, number: int) -> None:
        super().__init__()
        self.gate_up = torch.nn.Parameter(experts.gate_up_proj[number].detach().clone(), requires_grad=False)
        self.down = torch.nn.Parameter(experts.down_proj[number].detach().clone(), requires_grad=False)
        self._activation = experts.act_fn

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        gate, up = torch.nn.functional.linear(rows, self.gate_up).chunk(2, dim=-1)
        return torch.nn.functional.linear(self._activation(gate) * up, self.down)


class _DeepspeedGate:
    """DeepSpeed's own top-k gating, on logits that make it choose what the model's router chose."""

    def __init__(self, router: Any, gate: Any, topkgating: Any) -> None:
        self._router = router
        self._gate = gate
        self._topkgating = topkgating

    def __call__(self, hidden: torch.Tensor, _used: Any = None, sparse: bool = False, _tutel: bool = False) -> Any:
        _, weights, index = self._router(hidden)
        # Softmax over these, renormalised over the chosen, gives back the weights.
        logits = torch.full((len(hidden), self._router.num_experts), -30.0)
        logits.scatter_(1, index, weights.float().log())
        gate = self._gate
        return self._topkgating(logits, gate.k, 1.0, gate.min_capacity, False, gate.ep_group, sparse_routes=sparse)


class _OutputOnly(torch.nn.Module):
    def __init__(self, moe: Any) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.moe(hidden)[0]
        return output.view_as(hidden)


def _experts_of(model: Any) -> Sequence[Any]:
    return [layer.mlp.experts for layer in model.get_decoder().layers if hasattr(layer.mlp, "experts")]


def _replay(model: Any, workload: Workload) -> Replay | None:
    return Replay(routers_of(model)) if workload.replay else None
