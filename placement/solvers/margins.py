"""How much of the allowed imbalance a search may use on the profile, so that new requests keep the cap where they can.

The tighter the ceiling of the search, the more even the load, and the more copies. Each layer is searched under every
margin; of those whose expected load on new requests keeps the cap, the one with the fewest copies is taken. Where none
does, because the load of even the tightest drifts past the cap, tightening further buys little: on gpt-oss-20b, 8
ranks, one copy of each expert, 0.02 of imbalance cost 6 % of copies. Then the one with the least product of copies and
heaviest load is taken, a step's traffic times its computing time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from specmoe.placement.solvers.layer_problem import LayerProblem

Found = TypeVar("Found")
Margins = tuple[float, ...]

THE_CAP_ITSELF: Margins = (1.0,)

_MARGINS = (0.5, 0.75, 1.0)
# Past this many experts load drifts as far under every margin (benchmarks/load_margins.py), and searches take longer.
_MOST_EXPERTS = 64


@dataclass(frozen=True, kw_only=True)
class Trial(Generic[Found]):
    """What was found under one margin: its copies per token and the heaviest load over the mean, on new requests."""

    found: Found
    copies: float
    heaviest: float


def margins_for(num_slots: int, num_logical_experts: int) -> Margins:
    """The margins worth trying: the tightest alone where replicas let loads be moved after the search."""
    has_replicas = num_slots > num_logical_experts
    return _MARGINS[:1] if has_replicas or num_logical_experts > _MOST_EXPERTS else _MARGINS


def ceiling_of(margin: float, max_imbalance: float) -> float:
    """The load cap that a search keeps on the profile."""
    return 1.0 + margin * (max_imbalance - 1.0)


def under_margin(problem: LayerProblem, margin: float) -> LayerProblem:
    """The problem with the ceiling of `margin`."""
    ceiling = ceiling_of(margin, problem.machine.allowed_imbalance)
    return replace(problem, machine=replace(problem.machine, max_imbalance=ceiling))


def best_trial(trials: Sequence[Trial[Found]], max_imbalance: float) -> Trial[Found]:
    """The trial to take, by the rule of the module's text."""
    keeping = [trial for trial in trials if trial.heaviest <= max_imbalance]
    if keeping:
        return min(keeping, key=lambda trial: trial.copies)
    return min(trials, key=lambda trial: trial.copies * trial.heaviest)
