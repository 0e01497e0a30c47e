"""`auto` under `dp`: a request keeps one home in all layers, so layers are solved together through the homes.

Placements and homes alternate from several clusterings of the requests. The homes that a placement is made for are then
those that the contract's rule gives to requests which the affinity was not fitted to, so that the plan is the best one
for new requests and not for those of the profile.
"""

from copy import copy

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.homes import dp_homes
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.affinity import affinity_tensor
from specmoe.placement.solvers.assemble import assemble
from specmoe.placement.solvers.auto_tp import vocabulary_size
from specmoe.placement.solvers.cooling import cooling
from specmoe.placement.solvers.copies import Copies, set_copies
from specmoe.placement.solvers.dp_search import DpSearch, Places
from specmoe.placement.solvers.effort import affordable_kicks, affordable_rounds, affordable_starts, annealed_swaps
from specmoe.placement.solvers.finish_layer import finish_layer
from specmoe.placement.solvers.layer_problem import Machine
from specmoe.placement.solvers.margins import Margins, ceiling_of
from specmoe.placement.solvers.replicated_layer import (
    ANNEALING_ROUNDS,
    anneal_rounds,
    copies_by_home,
    fill_slots,
    holds_of,
    settle,
)
from specmoe.placement.solvers.request_clusters import clustered_homes, even_homes, request_features
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

_STARTS = 5
# Annealing begins hot, so it needs no more than a fair start.
_STARTS_WITH_REPLICAS = 1
# The part of a time limit for placements to begin with, where annealing follows.
_STARTS_TIME = 0.3
_RESTARTS = (4, 2, 2, 2)
_SERVED_ALTERNATIONS, _ANNEALED_ALTERNATIONS = 3, 4
_KICKED_TURNS = 2
_HOME_ROUNDS, _FEWEST_HOME_ROUNDS = 10, 3
# They become fewer only from twice as many slots on.
_HOME_ROUNDS_THIN_OUT = 2


def auto_dp(profile: RoutingProfile, topology: Topology, options: SolveOptions, margins: Margins) -> PlacementPlan:
    """The best plan found; `margins`: the parts of the allowed imbalance that its layers may try on the profile."""
    machine = Machine.of(topology, options, profile.num_logical_experts, ceiling_of(margins[0], options.max_imbalance))
    search = DpSearch(profile, machine, options)
    search, places = _best_start(search, margins)
    if int(machine.slots.sum()) == profile.num_logical_experts:
        places = _kicked(search, places)
    share, affinity = search.served_homes(search.plain_costs(places))
    copies = search.each_layer(
        lambda layer: fill_slots(
            search.searched[layer], holds_of(search.searched[layer], places[layer]), search.homes_of_set(layer, share)
        )
    )
    if int(machine.slots.sum()) > profile.num_logical_experts:
        _anneal(search, copies, share)
    cost = search.costs_of_copies(copies)
    share, affinity = search.judged_homes(cost)
    expected, spread = search.expected(share, cost), search.spread(affinity, cost)
    sample, choice = profile.require_sample("solving for request homes"), options.replica_choice or "cover"
    table = None if affinity is None else affinity_tensor(affinity, search.requests, vocabulary_size(profile))
    homes = dp_homes(sample.request_ids, sample.token_ids, table, sample.num_tokens, topology.ep_size)
    layers = search.each_layer(
        lambda layer: finish_layer(
            search.problems[layer], copies[layer], homes, choice, options.seed + layer, may_search=not options.is_over
        )
    )
    tables = {} if table is None else {"token_affinity": table}
    return assemble(profile, topology, options, layers, method="auto", expected=expected, spread=spread, **tables)


def _best_start(search: DpSearch, margins: Margins) -> tuple[DpSearch, Places]:
    """The placements, alternated to the end, of the clustering that serves new requests best, and their search."""
    sample = search.profile.require_sample("clustering requests")
    features = request_features(sample, search.requests, search.profile.num_logical_experts)
    found: list[tuple[float, DpSearch, Places]] = []
    slots = int(search.machine.slots.sum())
    has_replicas = slots > search.profile.num_logical_experts
    starts = max(1, affordable_starts(_STARTS_WITH_REPLICAS if has_replicas else _STARTS, slots))
    starting = search.options.ending_after(_STARTS_TIME if has_replicas else 1.0)
    for start in range(starts):
        if found and search.options.is_over:
            break
        own, seed = copy(search), search.options.seed + start
        own.options = starting
        placed = _clustered(own, features, seed)
        placed = own.choose_margins(own.served_homes(own.plain_costs(placed))[0], placed, margins)
        placed = _alternated(own, placed, 0 if has_replicas else annealed_swaps(slots))
        cost = own.plain_costs(placed)
        found.append((own.expected(own.served_homes(cost)[0], cost), own, placed))
        search.options.report("starts", start + 1, starts, min(value for value, _, _ in found))
    _, best, places = min(found, key=lambda run: run[0])
    best.options = search.options
    return best, places


def _clustered(search: DpSearch, features: NDArray[np.float64], seed: int) -> Places:
    """Placements for one clustering of the requests, whose homes then follow the placements."""
    slots = int(search.machine.slots.sum())
    share = clustered_homes(features, search.requests.lengths, search.machine.ep_size, seed)
    placed: Places | None = None
    for turn, restarts in enumerate(_RESTARTS):
        if placed is not None and search.options.is_over:
            break
        afresh = affordable_starts(restarts, slots)
        placed = search.place(share, placed, afresh if placed else max(1, afresh), seed + turn)
        share = even_homes(search.plain_costs(placed), search.requests.lengths)
    assert placed is not None
    return placed


def _alternated(search: DpSearch, places: Places, annealed: int) -> Places:
    """Placements for homes that new requests can be sent to, half way between those and the best ones.

    annealed: proposals by which they are annealed every time.
    """
    for turn in range(_ANNEALED_ALTERNATIONS if annealed else _SERVED_ALTERNATIONS):
        if search.options.is_over:
            break
        cost = search.plain_costs(places)
        wanted = even_homes(cost, search.requests.lengths)
        share = 0.5 * search.served_homes(cost)[0] + 0.5 * wanted
        places = search.place(share, places, 0, turn, annealed=annealed)
    return places


def _kicked(search: DpSearch, places: Places) -> Places:
    """The placements bettered by searches that begin anew near them, homes alternating as in `_alternated`."""
    kicks = affordable_kicks(int(search.machine.slots.sum()))
    cost = search.plain_costs(places)
    served = search.served_homes(cost)[0]
    best = search.expected(served, cost)
    for turn in range(_KICKED_TURNS):
        wanted = even_homes(cost, search.requests.lengths)
        kicked = search.kicked(0.5 * served + 0.5 * wanted, places, kicks, turn)
        cost = search.plain_costs(kicked)
        served = search.served_homes(cost)[0]
        if search.expected(served, cost) >= best:
            break
        places, best = kicked, search.expected(served, cost)
    return places


def _anneal(search: DpSearch, copies: list[Copies], share: NDArray[np.float64]) -> None:
    """Better all layers' copies in place, from homes `share` on."""
    options, slots = search.options, int(search.machine.slots.sum())
    filled, annealed_for = [one.holds.copy() for one in copies], share

    def anneal(layer: int) -> NDArray[np.float32]:
        if not options.is_over:
            problem, homes = search.searched[layer], search.homes_of_set(layer, share)
            anneal_rounds(problem, copies[layer], homes, turns.tolist(), options.seed + layer)
        return copies_by_home(search.problems[layer], copies[layer])

    def settle_layer(layer: int) -> None:
        problem, homes, seed = search.searched[layer], search.homes_of_set(layer, annealed_for), options.seed + layer
        settle(problem, copies[layer], homes, seed, ceiling=problem.cap.ceiling, overload_price=OVERLOAD_PRICES[0])

    home_rounds, done = max(_FEWEST_HOME_ROUNDS, affordable_rounds(_HOME_ROUNDS, slots // _HOME_ROUNDS_THIN_OUT)), 0
    for turns in cooling(ANNEALING_ROUNDS, home_rounds, lambda: options.seconds_left):
        if options.is_over:
            break
        cost, annealed_for = search.cost_per_token(anneal), share
        share = search.served_homes(cost)[0]
        done += len(turns)
        options.report("replicas", done, max(done, ANNEALING_ROUNDS), search.expected(share, cost))
    if options.is_over:
        _keep_better(search, copies, filled)
    else:
        search.each_layer(settle_layer)


def _keep_better(search: DpSearch, copies: list[Copies], before: list[NDArray[np.uint8]]) -> None:
    """Take the copies `before`, uint8 [R, E], where annealing that was cut short has not found better ones yet."""
    now, expected = [one.holds.copy() for one in copies], []
    for holds in (now, before):
        for one, held in zip(copies, holds, strict=True):
            set_copies(one, held)
        cost = search.costs_of_copies(copies)
        expected.append(search.expected(search.served_homes(cost)[0], cost))
    if expected[0] <= expected[1]:
        for one, held in zip(copies, now, strict=True):
            set_copies(one, held)
