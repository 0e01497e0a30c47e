"""`cluster`: a quick plan by spectral methods, without a search on the objective.

Under `dp` requests are co-clustered with all layers' experts, under `tp` token ids with each layer's: a cluster of rows
is a rank, and each expert goes to a rank whose rows use it, exactly assigned, under the load cap. Without ids experts
are clustered by their co-activation. Token tables say what the clusters say: how much likelier a token id is in a
rank's requests, or which rank holds most of what the id uses.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

from specmoe.placement.homes import dp_homes, tp_homes
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.assemble import assemble
from specmoe.placement.solvers.auto_tp import vocabulary_size
from specmoe.placement.solvers.capped_assignment import capped_assignment
from specmoe.placement.solvers.co_clusters import co_clusters, coactivation_pull, counts_of_rows
from specmoe.placement.solvers.finish_layer import finish_layer
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.solvers.replicated_layer import fill_slots, holds_of
from specmoe.placement.solvers.requests import Requests
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

# A token id counts in every rank's requests this many times before it is seen.
_PRIOR_TOKENS = 0.5


def cluster(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan; free slots hold the replicas that save most where the clusters start."""
    sample = profile.require_sample("method 'cluster'")
    machine = Machine.of(topology, options, profile.num_logical_experts, options.max_imbalance)
    problems = [LayerProblem.of(profile, layer, machine) for layer in range(profile.num_layers)]
    places, tables = _places_and_tables(problems, sample, vocabulary_size(profile), options)
    homes = _homes(sample, options, tables, len(problems), topology.ep_size)
    layers = []
    for problem, place, homes_of_token in zip(problems, places, homes, strict=True):
        homes_of_set = np.zeros((len(problem.sets.sets), topology.ep_size))
        np.add.at(homes_of_set, (problem.sets.set_of_token, homes_of_token), 1.0)
        copies = fill_slots(problem, holds_of(problem, place), homes_of_set)
        layers.append(finish_layer(problem, copies, homes_of_token, options.replica_choice or "cover", options.seed))
    return assemble(profile, topology, options, layers, method="cluster", **tables)


def _places_and_tables(
    problems: list[LayerProblem], sample: RoutingSample, vocab_size: int, options: SolveOptions
) -> tuple[list[NDArray[np.int32]], dict[str, Any]]:
    """The rank of each expert, int32 [E] per layer, and the plan's tables by name."""
    if sample.token_ids is None:
        return [_by_coactivation(problem, sample, layer, options) for layer, problem in enumerate(problems)], {}
    known, id_of_token = np.unique(sample.token_ids, return_inverse=True)
    if options.attention == "tp":
        pairs = [
            _with_token_ids(problem, sample, layer, id_of_token, options) for layer, problem in enumerate(problems)
        ]
        return [place for place, _ in pairs], _token_tables([share for _, share in pairs], known, vocab_size)
    requests = Requests.of(sample)
    # Without requests every token is one, and all that is known of it is its id.
    rows = id_of_token.astype(np.int32) if sample.request_ids is None else requests.request_of_token
    E, R = problems[0].num_logical_experts, problems[0].machine.ep_size
    counts = [counts_of_rows(rows, sample.expert_ids[:, layer], E) for layer in range(len(problems))]
    rank_of_row = co_clusters(csr_array(hstack(counts)), R, options.seed)
    places = [_assigned(problem, count, rank_of_row) for problem, count in zip(problems, counts, strict=True)]
    return places, {"token_affinity": _affinity(requests, rank_of_row[rows], vocab_size, R)}


def _by_coactivation(
    problem: LayerProblem, sample: RoutingSample, layer: int, options: SolveOptions
) -> NDArray[np.int32]:
    """int32 [E]: the layer's experts by clusters of those that serve the same tokens."""
    E, machine = problem.num_logical_experts, problem.machine
    pull = coactivation_pull(sample.expert_ids[:, layer], E, machine.ep_size, options.seed)
    return capped_assignment(pull, problem.load[:E], machine.slots, machine.speed, problem.cap.ceiling)


def _assigned(problem: LayerProblem, counts: csr_array, rank_of_row: NDArray[np.int32]) -> NDArray[np.int32]:
    """int32 [E]: each expert where the rows of a rank use it most; counts: sparse [N, E]."""
    machine = problem.machine
    chosen = np.eye(machine.ep_size)[rank_of_row]
    load = problem.load[: problem.num_logical_experts]
    return capped_assignment(counts.T @ chosen, load, machine.slots, machine.speed, problem.cap.ceiling)


def _with_token_ids(
    problem: LayerProblem, sample: RoutingSample, layer: int, id_of_token: NDArray[np.int64], options: SolveOptions
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """int32 [E], the ranks of the layer's experts; float64 [D, R], the part of each id's pairs that each rank holds.

    An id is taken to have been seen once more, with nothing to say.
    """
    E, machine = problem.num_logical_experts, problem.machine
    counts = counts_of_rows(id_of_token.astype(np.int32), sample.expert_ids[:, layer], E)
    place = _assigned(problem, counts, co_clusters(counts, machine.ep_size, options.seed))
    pairs = counts @ np.eye(machine.ep_size)[place]
    return place, pairs / (pairs.sum(axis=1, keepdims=True) + sample.expert_ids.shape[2])


def _token_tables(shares: list[NDArray[np.float64]], token_ids: NDArray[np.int32], vocab_size: int) -> dict[str, Any]:
    """The tables of `tp`: the rank that holds most, and how much more than the mean rank."""
    known = token_ids >= 0
    ranks = np.full((len(shares), vocab_size), -1, dtype=np.int16)
    confidence = np.zeros((len(shares), vocab_size), dtype=np.float16)
    for layer, share in enumerate(shares):
        ranks[layer, token_ids[known]] = share[known].argmax(axis=1)
        confidence[layer, token_ids[known]] = (share.max(axis=1) - share.mean(axis=1))[known]
    return {"token_to_rank": ranks, "token_confidence": confidence}


def _affinity(
    requests: Requests, rank_of_token: NDArray[np.int32], vocab_size: int, ep_size: int
) -> NDArray[np.float16]:
    """float16 [V, R]: naive Bayes: logarithms of how likely each token id is in the requests of each rank, centred."""
    assert requests.known_tokens is not None
    assert requests.token_ids is not None
    rank_of_request = np.zeros(requests.num_requests, dtype=np.int32)
    rank_of_request[requests.request_of_token] = rank_of_token
    seen = np.full((vocab_size, ep_size), _PRIOR_TOKENS)
    seen[requests.token_ids] += requests.known_tokens.T @ np.eye(ep_size)[rank_of_request]
    likelihood = np.log(seen / seen.sum(axis=0))
    pull: NDArray[np.float16] = (likelihood - likelihood.mean(axis=1, keepdims=True)).astype(np.float16)
    return pull


def _homes(
    sample: RoutingSample, options: SolveOptions, tables: dict[str, Any], num_layers: int, ep_size: int
) -> NDArray[np.int32]:
    """int32 [L, T]: where the contract's rules seat the sample's tokens."""
    if options.attention == "tp":
        table, confidence = tables.get("token_to_rank"), tables.get("token_confidence")
        return tp_homes(sample.token_ids, table, confidence, sample.num_tokens, num_layers, ep_size)
    affinity = tables.get("token_affinity")
    homes = dp_homes(sample.request_ids, sample.token_ids, affinity, sample.num_tokens, ep_size)
    return np.broadcast_to(homes, (num_layers, sample.num_tokens))
