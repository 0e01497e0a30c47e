"""`solve`: from a routing profile and a machine to a placement plan, by a method from a table."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import ArtifactError, MismatchError, UsageError
from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.baselines.linear import linear
from specmoe.placement.baselines.round_robin import round_robin
from specmoe.placement.bounds.prove import prove
from specmoe.placement.expected_pairs import with_expected_pairs
from specmoe.placement.options import SolveOptions, SolveProgress
from specmoe.placement.plan import Attention, PlacementPlan, ReplicaChoice
from specmoe.placement.solvers.assemble import measured
from specmoe.placement.solvers.auto import auto
from specmoe.placement.solvers.auto_tp import vocabulary_size
from specmoe.placement.solvers.cluster import cluster
from specmoe.placement.solvers.counts_only import loads_counted
from specmoe.placement.solvers.expert_groups import check_groups
from specmoe.placement.solvers.feasibility import keep_cap
from specmoe.placement.solvers.ilp import ilp
from specmoe.placement.solvers.nearest_tokens import nearest_tokens
from specmoe.placement.solvers.robust import solve_robustly
from specmoe.placement.token_embeddings import TokenEmbeddings
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

Method = Callable[[RoutingProfile, Topology, SolveOptions], PlacementPlan]

METHODS: Mapping[str, Method] = {
    "auto": auto,
    "cluster": cluster,
    "ilp": ilp,
    "linear": linear,
    "round_robin": round_robin,
    "eplb": eplb,
}

# These say where experts sit without looking at a cap, so it says nothing about them.
_WITHOUT_CAP = frozenset({"linear", "round_robin", "eplb"})
_WITH_TOKEN_TABLES = frozenset({"auto", "ilp"})

# The part of a time limit that the search may use where a bound is wanted as well.
_SEARCH = 0.8
# Up to so many experts the best placement for the plan's homes is found in no time.
_FEW_EXPERTS = 16


def solve(
    profile: RoutingProfile | str | PathLike[str],
    topology: Topology | int | str | PathLike[str],
    *,
    attention: Attention = "dp",
    extra_slots: int = 0,
    max_imbalance: float = 1.05,
    method: str = "auto",
    time_limit: float | None = None,
    seed: int = 0,
    replica_choice: ReplicaChoice | None = None,
    group_limited: bool = False,
    expert_groups: int | None = None,
    best_effort: bool = False,
    robust: bool = False,
    bound_seconds: float = 10.0,
    embeddings: TokenEmbeddings | None = None,
    on_progress: Callable[[SolveProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> PlacementPlan:
    """The placement plan for `profile` on `topology` (an `int` is that many equal ranks on one node), or for the files
    of these names.

    Fewest remote copies per token, with the heaviest rank's load at most `max_imbalance` times the mean in every layer
    of the profile. The same inputs and seed give the same plan, unless `time_limit` (seconds) or `should_stop`
    (asked now and then) ends the search, which then gives the best so far. `bound_seconds` is what a lower bound may
    cost, in one core's seconds counted by operations; 0 for none. `robust` asks for the fewest copies on the worst of
    the profile's domains, in place of the mean over all tokens. `embeddings`, under attention tp, are the model's:
    token ids that the profile has hardly seen then take the table row of the nearest token that it knows.
    Raises `UsageError` for arguments that cannot be, `InfeasibleError` where no plan that keeps the cap was found
    (with `best_effort` the best one comes back instead), `ArtifactError` where a method needs what the profile lacks.
    """
    profile = profile if isinstance(profile, RoutingProfile) else RoutingProfile.load(profile)
    machine = _machine(topology)
    options = SolveOptions(
        attention=attention,
        extra_slots=extra_slots,
        max_imbalance=max_imbalance,
        seed=seed,
        time_limit=time_limit,
        replica_choice=replica_choice,
        group_limited=group_limited,
        expert_groups=_expert_groups(expert_groups, profile),
        best_effort=best_effort,
        robust=robust,
        on_progress=on_progress,
        should_stop=should_stop,
        bound_seconds=bound_seconds,
        nearest=None if embeddings is None else _nearest(embeddings, profile, attention, method),
    )
    if not profile.expert_counts.any():
        raise ArtifactError(
            "the profile has seen no token, so there is nothing to solve from; profile the model over text"
        )
    if method not in METHODS:
        raise UsageError(f"method is {method!r}, one of {', '.join(METHODS)} was expected")
    if robust and method == "ilp":
        raise UsageError(
            "robust asks for the least worst domain, method 'ilp' proves the least mean; use method 'auto'"
        )
    slots = machine.slots_of_rank(profile.num_logical_experts, extra_slots)
    if group_limited:
        check_groups(profile.num_logical_experts, slots, options.expert_groups, method)
    begin = time.monotonic()
    searching = _ending(options, begin, _SEARCH if bound_seconds else 1.0)
    if robust:
        plan = solve_robustly(METHODS[method], profile, machine, searching)
    else:
        plan = METHODS[method](profile, machine, searching)
    if plan.objective is None:
        has_tokens = profile.sample is not None and profile.sample.num_tokens > 0
        plan = measured(plan, profile) if has_tokens else loads_counted(plan, profile)
    is_small = profile.num_logical_experts <= _FEW_EXPERTS
    # The best placement for all tokens together is not the one that was asked for where the worst domain counts.
    is_exact = method == "ilp" or (method == "auto" and is_small and not robust)
    plan = prove(plan, profile, _ending(options, begin, 1.0), exact=is_exact)
    plan = plan if method in _WITHOUT_CAP else keep_cap(plan, profile, options)
    if profile.sample is not None and profile.sample.num_tokens > 0:
        plan = with_expected_pairs(plan, profile.sample)
    return _noted(plan, options)


def _machine(topology: Topology | int | str | PathLike[str]) -> Topology:
    if isinstance(topology, int):
        return Topology.single_node(topology)
    return topology if isinstance(topology, Topology) else Topology.load(topology)


def _expert_groups(asked: int | None, profile: RoutingProfile) -> int | None:
    """`asked`, or what the profile knows of its model's router; raises where these contradict each other."""
    known = profile.num_expert_groups
    if asked is not None and known is not None and known > 1 and asked != known:
        raise UsageError(
            f"expert_groups is {asked}, and the router of the profiled model has {known}; leave expert_groups out"
        )
    return asked or known


def _nearest(
    embeddings: TokenEmbeddings, profile: RoutingProfile, attention: Attention, method: str
) -> NDArray[np.int32]:
    """int32 [V]: the nearest well-known token of every id; raises where embeddings are of no use or another model's."""
    if attention != "tp" or method not in _WITH_TOKEN_TABLES:
        raise UsageError(
            f"the model's embeddings serve the token tables of attention 'tp' and method 'auto' or 'ilp', and this is "
            f"{attention!r} by {method!r}; leave the model out"
        )
    if profile.model_fingerprint not in (None, embeddings.model_fingerprint):
        raise MismatchError("the profile is of another model than the embeddings: give the model that was profiled")
    token_ids = profile.require_sample("finding the nearest known tokens").token_ids
    if token_ids is None:
        raise ArtifactError(
            "the profile does not tell token ids, so the model's embeddings are of no use; leave it out"
        )
    times_seen = np.bincount(token_ids[token_ids >= 0], minlength=vocabulary_size(profile))
    return nearest_tokens(embeddings.rows, times_seen)


def _ending(options: SolveOptions, begin: float, share: float) -> SolveOptions:
    """The options with an end after `share` of the time limit, where there is one."""
    if options.time_limit is None:
        return options
    end, stopped = begin + share * options.time_limit, options.should_stop
    return replace(
        options, ends_at=end, should_stop=lambda: time.monotonic() >= end or (stopped is not None and stopped())
    )


def _noted(plan: PlacementPlan, options: SolveOptions) -> PlacementPlan:
    """The plan with what it was asked for in `predicted["asked"]`."""
    asked: dict[str, Any] = {"max_imbalance": options.max_imbalance, "extra_slots": options.extra_slots}
    return replace(plan, predicted={**plan.predicted, "asked": asked})
