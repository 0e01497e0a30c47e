"""How a capacity bound is divided among source ranks: equally, or as the plan expects its traffic.

The bound on all tokens together is C = factor * T * K * s / P for an expert with s of the P slots, which without
replicas is factor * T * K / E (Capacity-Aware Inference, arXiv 2503.05066), and likewise for a device with s slots: a
second copy is there to serve as much as the first. It is enforced on each source rank by itself, before anything is
sent, so every rank needs its own part of C beforehand:

    "even"   C / R for every source, since a rank with n tokens takes them for 1 / R of all;
    "plan"   C * s[r] with s[r] = m[r] / sum over r' of m[r'], where m[r] is what one token at home on r is expected to
             send there (`PlacementPlan.expected_pairs`): a rank's own tokens want its experts more than others' do.

A source with n tokens takes T for R * n in both. Under "plan" the whole bound is rounded up once, and the parts are the
steps of its running sum over the sources (from another one for each expert), rounded down: where all ranks have equally
many tokens, the parts add up to the bound exactly. "even" rounds every part up, as the paper's code does.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import MismatchError
from specmoe.placement.plan import PlacementPlan

Division = Literal["plan", "even"]
Level = Literal["expert", "device"]


@dataclass(frozen=True, kw_only=True)
class RunningShares:
    """float64 [R, bins]: the sum of a bin's shares before each source, and with it; 0 and 1 at its ends."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]


def division_of(plan: PlacementPlan, asked: Division | None) -> Division:
    """The division that is asked for; None: "plan" where the plan has the figures for it, else "even".

    Raises `MismatchError` where the plan lacks the figures that are asked for.
    """
    if asked == "plan" and plan.expected_pairs is None:
        raise MismatchError(
            "the plan does not say what traffic it expects, which capacity division 'plan' needs; solve it anew from a "
            "profile with a trace, or use division 'even'"
        )
    return asked or ("even" if plan.expected_pairs is None else "plan")


def slot_counts(plan: PlacementPlan, layer: int, level: Level) -> NDArray[np.int64]:
    """int64 [E], the slots that hold each expert in row `layer`; at level "device" [R], those of each rank."""
    if level == "device":
        return np.diff(plan.slot_offsets)
    return np.bincount(plan.physical_to_logical[layer], minlength=plan.num_logical_experts)


def running_shares(plan: PlacementPlan, layer: int, level: Level) -> RunningShares:
    """The division "plan" of row `layer`; bins are experts, or ranks at level "device"."""
    shares = source_shares(plan, layer, level)
    # Rounding favours nobody in particular when every bin starts from another source.
    turn = np.add.outer(np.arange(plan.ep_size), np.arange(shares.shape[1])) % plan.ep_size
    running = np.cumsum(np.take_along_axis(shares, turn, axis=0), axis=0)
    running[-1] = 1.0
    before, after = np.empty_like(running), np.empty_like(running)
    np.put_along_axis(after, turn, running, axis=0)
    np.put_along_axis(before, turn, np.concatenate([np.zeros_like(running[:1]), running[:-1]]), axis=0)
    return RunningShares(before=before, after=after)


def source_shares(plan: PlacementPlan, layer: int, level: Level) -> NDArray[np.float64]:
    """float64 [R, E] or [R, R]: what part of a bin's pairs is expected from each home rank; sums over ranks are 1."""
    assert plan.expected_pairs is not None
    bin_of_slot = plan.physical_to_logical[layer] if level == "expert" else plan.rank_of_physical
    num_bins = plan.num_logical_experts if level == "expert" else plan.ep_size
    expected = np.zeros((num_bins, plan.ep_size))
    np.add.at(expected, bin_of_slot, plan.expected_pairs[layer].T.astype(np.float64))
    whole = expected.sum(axis=1, keepdims=True)
    shares = np.where(whole > 0, expected / np.where(whole > 0, whole, 1.0), 1.0 / plan.ep_size)
    return np.ascontiguousarray(shares.T)
