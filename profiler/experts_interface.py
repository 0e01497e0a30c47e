"""Watch which experts a transformers model's tokens go to, through the one interface that all families share.

Since transformers 5 a routed layer hands its experts module `forward(hidden_states [T, H], top_k_index [T, K],
top_k_weights [T, K])`, whatever the family and however the experts are computed. A module is known by that signature,
its decoder layer by the first number in its path (`layers.3.mlp.experts`).

Llama-4's experts see every token and no routes: there the router is watched, whose K best scores are the choice.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from specmoe.errors import CheckpointError

INDEX_NAMES = ("top_k_index", "router_indices")
LLAMA4_EXPERTS = "Llama4TextExperts"

_Routes = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ExpertsModule:
    """A routed layer's experts: the decoder layer's number, the module and its path, and how many experts it has.

    router: Llama-4's, to be watched in the module's place.
    """

    layer_id: int
    path: str
    module: torch.nn.Module
    num_experts: int
    router: torch.nn.Module | None = None


@dataclass(frozen=True, kw_only=True)
class PassRouting:
    """One forward pass, padding included: expert_ids int64 [B * S, L, K], gate_weights [B * S, L, K]."""

    expert_ids: torch.Tensor
    gate_weights: torch.Tensor


def find_experts(model: torch.nn.Module, name: str) -> list[ExpertsModule]:
    """All experts modules of `model`, by layer; raises `CheckpointError`, calling the model `name`, where none is."""
    found = [
        _experts_module(model, path, module)
        for path, module in model.named_modules()
        if _takes_routes(module) or type(module).__name__ == LLAMA4_EXPERTS
    ]
    if found:
        return sorted(found, key=lambda experts: experts.layer_id)
    hidden = [path for path, module in model.named_modules() if "experts" in type(module).__name__.lower()]
    if hidden:
        raise CheckpointError(
            f"{name} has experts ({hidden[0]}, a {type(model.get_submodule(hidden[0])).__name__}) that do not run "
            "through transformers' experts interface, so their routing cannot be recorded; "
            "import a record of another engine instead"
        )
    raise CheckpointError(f"{name} has no mixture-of-experts layers; there is nothing to place")


class RoutingObserver:
    """While entered, keeps the routing tensors that every module of `modules` is called with."""

    def __init__(self, modules: Sequence[ExpertsModule]) -> None:
        self._modules = list(modules)
        self._seen: list[list[_Routes]] = [[] for _ in modules]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "RoutingObserver":
        self._handles = [_watch(experts, seen) for experts, seen in zip(self._modules, self._seen, strict=True)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def ran(self) -> dict[str, int]:
        """The experts per token of each module, by path, that was called since the last `take`."""
        return {
            experts.path: seen[0][0].shape[-1] for experts, seen in zip(self._modules, self._seen, strict=True) if seen
        }

    def take(self, num_rows: int) -> PassRouting:
        """What was seen since the last call, for a pass over `num_rows` rows; raises `CheckpointError` if rows lack."""
        ids, weights = [], []
        for experts, seen in zip(self._modules, self._seen, strict=True):
            ids.append(_joined(experts, [index for index, _ in seen], num_rows))
            weights.append(_joined(experts, [weight for _, weight in seen], num_rows))
            seen.clear()
        device = ids[0].device
        return PassRouting(
            expert_ids=torch.stack([index.to(device) for index in ids], dim=1),
            gate_weights=torch.stack([weight.to(device) for weight in weights], dim=1),
        )


def _watch(experts: ExpertsModule, seen: list[_Routes]) -> torch.utils.hooks.RemovableHandle:
    """Have each call's expert ids and weights appended to `seen`."""

    # References only: what is kept costs no kernel, and is let go of by `take`.
    def keep(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        routes = [*args, *kwargs.values()]
        seen.append((routes[1].detach(), routes[2].detach()))

    def keep_best(router: Any, _args: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        scores, logits = output
        index = logits.detach().topk(router.top_k, dim=1).indices  # as the router itself chose them
        seen.append((index, scores.detach().gather(1, index)))

    if experts.router is not None:
        return experts.router.register_forward_hook(keep_best)
    return experts.module.register_forward_pre_hook(keep, with_kwargs=True)


def _takes_routes(module: torch.nn.Module) -> bool:
    parameters = list(inspect.signature(type(module).forward).parameters)
    return len(parameters) >= 4 and parameters[1] == "hidden_states" and parameters[2] in INDEX_NAMES


def _experts_module(model: torch.nn.Module, path: str, module: torch.nn.Module) -> ExpertsModule:
    if getattr(module, "zero_expert_num", 0):
        raise CheckpointError(
            f"a token of {path} may choose experts that compute nothing, and so fewer of the others than its layer "
            "allows, which a profile cannot hold; this model cannot be profiled"
        )
    number = re.search(r"(?:^|\.)(\d+)\.", path)
    num_experts = getattr(module, "num_experts", getattr(module, "num_routed_experts", None))
    if number is None or not isinstance(num_experts, int):
        raise CheckpointError(f"the experts module {path} has no layer number in its path, or no number of experts")
    router = None if _takes_routes(module) else model.get_submodule(f"{path.rpartition('.')[0]}.router")
    return ExpertsModule(layer_id=int(number[1]), path=path, module=module, num_experts=num_experts, router=router)


def _joined(experts: ExpertsModule, parts: Sequence[torch.Tensor], num_rows: int) -> torch.Tensor:
    rows = [part.reshape(-1, part.shape[-1]) for part in parts]
    num_seen = sum(len(part) for part in rows)
    if num_seen != num_rows:
        raise CheckpointError(f"{experts.path} was given {num_seen} tokens of {num_rows}; all of them were expected")
    return rows[0] if len(rows) == 1 else torch.cat(rows)
