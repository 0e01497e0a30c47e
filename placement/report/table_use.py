"""How far a plan's token table reaches on a trace, and what it brings beside the placement alone."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.placement.homes import NO_RANK, assign_requests, homes_of, request_pulls, request_starts
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.routing_profile import RoutingSample


@dataclass(frozen=True, kw_only=True)
class TableUse:
    """Shares are 0 to 1, means over layers for `tp`.

    num_ids: token ids in the table. known_ids: of them, those with an opinion. known_tokens: of the trace's tokens,
    those whose id has one. followed: of the tokens (`tp`) or requests (`dp`) with an opinion, those that started on the
    rank that it names; the others had to give way to an even spread. copies_without: remote copies per token of the
    same placement without its table.
    """

    num_ids: int
    known_ids: float
    known_tokens: float
    followed: float
    copies_with: float
    copies_without: float


def table_use(plan: PlacementPlan, sample: RoutingSample, copies_with: float) -> TableUse | None:
    """The use of `plan`'s table on a sample of the same model; None without a table, or token ids."""
    if sample.token_ids is None or not (_size(plan.token_affinity) or _size(plan.token_to_rank)):
        return None
    bare = replace(plan, token_affinity=None, token_to_rank=None, token_confidence=None)
    known = _has_opinion(plan)
    in_table = (sample.token_ids >= 0) & (sample.token_ids < known.shape[1])
    tokens = known[:, np.where(in_table, sample.token_ids, 0)] & in_table
    return TableUse(
        num_ids=known.shape[1],
        known_ids=float(known.mean()),
        known_tokens=float(tokens.mean()),
        followed=_followed_requests(plan, sample) if plan.attention == "dp" else _followed_tokens(plan, sample, tokens),
        copies_with=copies_with,
        copies_without=mean_metrics(measure_plan(bare, sample)).remote_copies_per_token,
    )


def _size(table: Array | None) -> int:
    return 0 if table is None else table.size


def _has_opinion(plan: PlacementPlan) -> NDArray[np.bool_]:
    """bool [1 or L, V]: whether a token id has an entry (`tp`), or pulls to some ranks more than to others (`dp`)."""
    if plan.token_to_rank is not None:
        return np.asarray(plan.token_to_rank != NO_RANK)
    assert plan.token_affinity is not None
    pulls: NDArray[np.bool_] = np.any(plan.token_affinity != plan.token_affinity[:, :1], axis=1)
    return pulls[None, :]


def _followed_requests(plan: PlacementPlan, sample: RoutingSample) -> float:
    starts = request_starts(sample.request_ids, sample.num_tokens)
    pull = request_pulls(starts, sample.token_ids, plan.token_affinity, sample.num_tokens, plan.ep_size)
    home = assign_requests(np.diff(starts, append=sample.num_tokens), pull)
    strongest = pull.max(axis=1)
    pulled = strongest > pull.min(axis=1)
    return _share(pull[np.arange(len(home)), home] == strongest, pulled)


def _followed_tokens(plan: PlacementPlan, sample: RoutingSample, tokens: NDArray[np.bool_]) -> float:
    assert plan.token_to_rank is not None
    assert sample.token_ids is not None
    column = np.clip(sample.token_ids, 0, plan.token_to_rank.shape[1] - 1)
    return _share(homes_of(plan, sample) == plan.token_to_rank[:, column], tokens)


def _share(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(hits[among].mean()) if among.any() else 0.0
