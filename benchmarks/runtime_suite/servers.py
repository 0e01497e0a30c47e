"""Who serves: specmoe, transformers' own expert parallelism, or DeepSpeed's MoE layer, behind one small interface."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from outside import deepspeed_data_parallel, transformers_data_parallel, transformers_tensor_parallel
from replay import Replay, routers_of
from workload import Workload

import specmoe


class Server(Protocol):
    """One process's model; replay: what answers for its routers, where they do not answer by themselves."""

    model: Any
    replay: Replay | None

    def own_requests(self, workload: Workload) -> list[int]:
        """The requests that this process runs."""

    def session(self) -> AbstractContextManager[None]:
        """Around all forward passes of a run."""

    def counted(self) -> dict[str, int]:
        """What this process's tokens did since the last call: `remote_copies` and `tokens`, where it is known."""


class SpecmoeServer:
    """A compiled checkpoint on specmoe's runtime; slowdown: how many times as long its experts' products take."""

    def __init__(self, compiled: str, workload: Workload, slowdown: float) -> None:
        self.model: Any = specmoe.load(compiled, device="cpu", verify_hashes=False)
        self._runtime = self.model.specmoe
        if slowdown > 1:
            for layer in self._runtime.layers:
                layer._partial_sums = SlowedDown(layer._partial_sums, slowdown)
        self.replay = Replay(routers_of(self.model), self._runtime.homes.own_of) if workload.replay else None

    def own_requests(self, workload: Workload) -> list[int]:
        everyone = list(range(workload.num_requests))
        if self._runtime.shares_requests:
            return everyone
        processes = self._runtime.assign_requests(workload.tokens[:, : workload.prompt_tokens].tolist())
        return [number for number in everyone if processes[number] == self._runtime.workers.process]

    def session(self) -> AbstractContextManager[None]:
        session: AbstractContextManager[None] = self._runtime.lock_step()
        return session

    def counted(self) -> dict[str, int]:
        counts = self._runtime.counters()
        self._runtime.reset_counters()
        return {
            "remote_copies": sum(layer.remote_copies for layer in counts),
            "tokens": sum(layer.tokens for layer in counts),
        }


class SlowedDown:
    """A function that takes `slowdown` times its processor time: it sleeps for the rest."""

    def __init__(self, function: Callable[..., Any], slowdown: float) -> None:
        self._function = function
        self._slowdown = slowdown

    def __call__(self, *arguments: Any) -> Any:
        start = time.thread_time()
        result = self._function(*arguments)
        time.sleep((time.thread_time() - start) * (self._slowdown - 1))
        return result


def start_server(kind: str, checkpoint: str, attention: str, workload: Workload, slowdown: float) -> Server:
    """kind: "specmoe", "transformers" or "deepspeed"; raises what the baselines raise where they cannot run here."""
    if kind == "specmoe":
        return SpecmoeServer(checkpoint, workload, slowdown)
    if kind == "transformers" and attention == "tp":
        return transformers_tensor_parallel(checkpoint, workload)
    if kind == "transformers":
        return transformers_data_parallel(checkpoint, workload)
    if kind == "deepspeed" and attention == "dp":
        return deepspeed_data_parallel(checkpoint, workload)
    raise ValueError(f"{kind} has no {attention} attention of its own")
