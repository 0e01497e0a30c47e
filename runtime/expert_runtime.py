"""What runs beside a loaded model: its MoE layers, their counters, and the lock step of the processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from specmoe.errors import UsageError
from specmoe.kernels.routing_tables import RoutingTables
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.request_router import RequestRouter, route_requests
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.counters import Counters, LayerCounts
from specmoe.runtime.exchange import Exchange
from specmoe.runtime.homes import BatchHomes
from specmoe.runtime.layer_capacity import ForwardPass, LayerCapacity
from specmoe.runtime.moe_layer import MoeLayer
from specmoe.runtime.relays import Relays
from specmoe.runtime.shuffle import Shuffle
from specmoe.runtime.static_decode import StaticDecode
from specmoe.runtime.static_path import StaticPath
from specmoe.runtime.token_homes import TokenHomes
from specmoe.runtime.token_places import tokens_of_mask
from specmoe.runtime.workers import Workers


class ExpertRuntime:
    """Found on a loaded model as `model.specmoe`.

    Lock step (`dp`): every forward pass of any process needs all processes, since each holds experts that the others'
    tokens may want. A process that has nothing left to do takes part with no tokens until nobody has work. `generate`
    does so by itself; other use of the model with several processes goes inside `with model.specmoe.lock_step():`.
    Under `tp` all processes run the same batch, each its share of the heads and tokens.
    """

    def __init__(
        self,
        plan: PlacementPlan,
        workers: Workers,
        experts: Sequence[torch.nn.Module],
        blocks: Sequence[torch.nn.Module],
        hidden_size: int,
        capacity: CapacityPolicy | None,
        decode: StaticDecode | None,
    ) -> None:
        self.plan = plan
        self.workers = workers
        self._hidden_size = hidden_size
        self._router = RequestRouter(plan) if plan.attention == "dp" else None
        self.homes = BatchHomes(plan, workers) if plan.attention == "dp" else TokenHomes(plan, workers)
        self._counters = Counters(plan.layer_ids.tolist(), workers.own_ranks, plan.ep_size, workers.device)
        exchange = Exchange(workers)
        self.capacity = capacity
        self._pass = None if capacity is None else ForwardPass(capacity)
        self.static = None if decode is None else StaticPath(decode, plan, workers)
        # A capacity may change a pair's weight, which relays take from the router.
        self.relays = Relays.of_plan(plan, workers) if capacity is None else None
        self._layers = [
            MoeLayer(
                row,
                RoutingTables.of_layer(plan, row, workers.device),
                experts[row],
                exchange,
                self.homes,
                self._counters,
                self._layer_capacity(row, blocks[row]),
                self.static,
                self.relays,
            )
            for row in range(plan.num_layers)
        ]
        self._dtype = next(experts[0].parameters()).dtype
        # What carries tokens to their homes under tp attention, when there are several processes.
        self.shuffle: Shuffle | None = None
        self._depth = 0

    @property
    def layers(self) -> Sequence[MoeLayer]:
        """The MoE layers, by the plan's rows."""
        return self._layers

    @property
    def shares_requests(self) -> bool:
        """Whether all processes run the same requests (`tp`), and not each its own (`dp`)."""
        return isinstance(self.homes, TokenHomes) and self.workers.world_size > 1

    def counters(self) -> list[LayerCounts]:
        """What this process's tokens sent, layer by layer, since the start or the last `reset_counters`."""
        return self._counters.read()

    def reset_counters(self) -> None:
        """Start the counters again from zero."""
        self._counters.reset()

    @property
    def has_request_homes(self) -> bool:
        """Whether a request has one home rank (`dp`), and not each of its tokens its own at every layer (`tp`)."""
        return isinstance(self.homes, BatchHomes)

    def home_ranks(self, token_ids: Sequence[Sequence[int]]) -> list[int]:
        """The home rank of each of several requests, given in order of arrival by the token ids of their prompts."""
        self._require_own_requests()
        return route_requests(self.plan, token_ids)

    def assign_requests(self, token_ids: Sequence[Sequence[int]]) -> list[int]:
        """The process for each of several requests, as of `home_ranks`."""
        return [rank // self.workers.ranks_per_process for rank in self.home_ranks(token_ids)]

    def assign_request(self, token_ids: Sequence[int]) -> int:
        """The process for the request that arrives next, beside all that came before it since the model was loaded.

        Processes that are asked for the same requests in the same order give the same answers.
        """
        router = self._require_own_requests()
        return router.route(token_ids) // self.workers.ranks_per_process

    def _require_own_requests(self) -> RequestRouter:
        if self._router is None:
            raise UsageError("under tp attention every process runs every request; none has requests of its own")
        return self._router

    def pin_requests(self, ranks: Sequence[int] | None) -> None:
        """Put the rows of the coming batches on these ranks of this process; None: by the plan's rule."""
        if isinstance(self.homes, TokenHomes):
            raise UsageError("under tp attention tokens have homes by the plan's table; requests cannot be pinned")
        self.homes.pin(ranks)

    @contextmanager
    def lock_step(self) -> Iterator[None]:
        """Run any number of forward passes inside; on leaving, take part in the others' until all have left."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        # Not after an error: the process that fails ends, and the others notice.
        if self._depth == 0 and self.workers.world_size > 1:
            while self._take_part():
                pass

    def _layer_capacity(self, row: int, block: torch.nn.Module) -> LayerCapacity | None:
        if self.capacity is None or self._pass is None:
            return None
        shares = self.capacity.source_shares(self.plan, row, self.workers.device)
        return LayerCapacity(self.capacity, self._pass, block, shares)

    def _take_part(self) -> bool:
        """Take part in one forward pass of the others; False when none of them has work."""
        first, *rest = self._layers
        if not first.take_part(self._dtype, self._hidden_size, self.plan.top_k):
            return False
        for layer in rest:
            layer.take_part(self._dtype, self._hidden_size, self.plan.top_k)
        return True

    def begin_forward(self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pre-hook (with keyword arguments) of the model: notes the batch that runs next."""
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        batch = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if batch is None:
            return
        cache = kwargs.get("past_key_values")
        if self._pass is not None:
            self._pass.begin(input_ids, batch.shape[1])
        num_requests, num_new = batch.shape[:2]
        # A deferred step belongs to requests that have begun; a static cache's length would have to be waited for, as
        # would padding.
        if self.static is not None and self.static.is_deferred:
            self.homes.begin_forward(input_ids, num_requests, is_start=False)
            return
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        is_token = tokens_of_mask(kwargs.get("attention_mask"), num_requests, num_new, num_cached)
        self.homes.begin_forward(input_ids, num_requests, is_start=num_cached == 0, is_token=is_token)


def runtime_of(model: torch.nn.Module) -> ExpertRuntime:
    """The runtime of a model that `load` returned; raises `UsageError` for any other model."""
    runtime = getattr(model, "specmoe", None)
    if not isinstance(runtime, ExpertRuntime):
        raise UsageError("the model was not loaded with specmoe.load")
    return runtime
