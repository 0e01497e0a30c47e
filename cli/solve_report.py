"""What `specmoe solve` shows: a bar while it works, a few lines or a JSON object when it is done."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from specmoe.compiled import on_first_compilation
from specmoe.placement.baselines.linear import linear
from specmoe.placement.objective import internode_surcharge
from specmoe.placement.options import SolveOptions, SolveProgress
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.assemble import measured
from specmoe.profiler.routing_profile import RoutingProfile

COMPILING = "compiling the search to machine code: up to a minute, once on this machine"


class SolveBar:
    """A progress bar on stderr: the stage, its steps, and remote copies per token so far; before them, what makes the
    first use on a machine slow."""

    def __init__(self, *, visible: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc="solving", leave=False, disable=not visible)
        self._open = ExitStack()
        self._open.enter_context(self._bar)
        if visible:
            self._open.enter_context(on_first_compilation(lambda: self._bar.write(COMPILING, file=sys.stderr)))

    def show(self, progress: SolveProgress) -> None:
        """Show one step."""
        self._bar.total = progress.total
        self._bar.set_description(progress.stage, refresh=False)
        if progress.objective is not None:
            gap = "" if progress.gap is None else f", gap {progress.gap:.1%}"
            self._bar.set_postfix_str(f"{progress.objective:.3f} copies per token{gap}", refresh=False)
        self._bar.n = progress.done
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def report_json(plan: PlacementPlan, profile: RoutingProfile, seconds: float, *, stopped: bool) -> dict[str, Any]:
    """The result by name; `linear` is the placement in checkpoint order on the same profile, which knows no load cap.

    stopped: whether Ctrl-C ended the search.
    """
    checkpoint_order = _linear(plan, profile)
    return {
        "method": plan.method,
        "attention": plan.attention,
        "replica_choice": plan.replica_choice,
        "ep_size": plan.ep_size,
        "objective": plan.objective,
        "linear_objective": None if checkpoint_order is None else checkpoint_order.objective,
        "linear_load_imbalance": None if checkpoint_order is None else _load_imbalance(checkpoint_order),
        "bound": plan.bound,
        "gap": plan.gap,
        "predicted": dict(plan.predicted),
        "seconds": seconds,
        "stopped": stopped,
        "plan_digest": plan.digest,
    }


def report_lines(plan: PlacementPlan, profile: RoutingProfile, seconds: float, *, stopped: bool) -> Iterator[str]:
    """The result in a few lines for a person; stopped: whether Ctrl-C ended the search."""
    yield f"{plan.method}, {plan.ep_size} ranks, attention {plan.attention}, {seconds:.1f} s"
    checkpoint_order = _linear(plan, profile)
    baseline = None if checkpoint_order is None else checkpoint_order.objective
    if plan.objective is not None and baseline is not None:
        change = f" ({plan.objective / baseline - 1:+.0%} against linear's {baseline:.3f})" if baseline else ""
        is_weighted = internode_surcharge(plan.topology) > 0
        what = "cost in remote copies    " if is_weighted else "remote copies per token  "
        links = ", a copy to another node weighed by its link" if is_weighted else ""
        yield f"  {what}{plan.objective:.3f} on the profile{change}{links}"
    if "held_out_objective" in plan.predicted:
        yield _expected_line(plan.predicted)
    if "profile" in plan.predicted:
        linears = "" if checkpoint_order is None else f" (linear's {_load_imbalance(checkpoint_order):.3f})"
        yield f"  load imbalance           {_load_imbalance(plan):.3f} mean over layers{linears}"
    if "held_out_load_imbalance" in plan.predicted:
        yield f"                           {plan.predicted['held_out_load_imbalance']:.3f} expected on other requests"
    if plan.topology.relative_speed is not None and "heaviest_rank" in plan.predicted:
        yield f"  load over speed          {plan.predicted['heaviest_rank']:.3f} at most, what --max-imbalance caps"
    if "robust" in plan.predicted:
        yield from _robust_lines(plan.predicted["robust"])
    yield from _bound_lines(plan)
    if plan.num_physical_experts > plan.num_logical_experts:
        yield f"  replicas                 reached by the {plan.replica_choice} choice"
    for missing in plan.predicted.get("missing", []):
        yield f"  note                     {missing}"
    if stopped:
        yield "  note                     stopped by Ctrl-C: the best plan so far, another run may find a better one"


def _expected_line(predicted: Mapping[str, Any]) -> str:
    expected, spread = predicted["held_out_objective"], predicted["held_out_spread"]
    line = f"                           {expected:.3f} expected on other requests"
    if spread is None:
        return line
    return f"{line}, {expected * (1 - spread):.3f} to {expected * (1 + spread):.3f} in 19 of 20 cases"


def _robust_lines(note: Mapping[str, Any]) -> Iterator[str]:
    worst, plain = max(note["objective"]), max(note["plain_objective"])
    if note["is_plain"]:
        yield f"  worst domain             {worst:.3f} copies per token, by the plan for all tokens together:"
        yield "                           no mixture of domains was better on held-out requests"
        return
    yield f"  worst domain             {worst:.3f} copies per token ({plain:.3f} by a plan for all tokens together)"
    worst, plain = max(note["held_out_objective"]), max(note["plain_held_out_objective"])
    yield f"                           {worst:.3f} ({plain:.3f}) on half of the requests by a plan for the others"


def _bound_lines(plan: PlacementPlan) -> Iterator[str]:
    note = plan.predicted.get("bound")
    if plan.bound is None or plan.gap is None or note is None:
        yield "  proven lower bound       none for this plan"
        return
    weak = " (a weak bound)" if note["is_weak"] else ""
    yield f"  proven: no placement for these homes costs less than {plan.bound:.3f}, gap {plan.gap:.1%}{weak}"
    if note["any_homes"] > 0:
        yield f"  proven: nor for any other homes, less than {note['any_homes']:.3f}"


def _load_imbalance(plan: PlacementPlan) -> float:
    return float(plan.predicted["profile"]["load_imbalance"])


def _linear(plan: PlacementPlan, profile: RoutingProfile) -> PlacementPlan | None:
    if profile.sample is None:
        return None
    return measured(linear(profile, plan.topology, SolveOptions(attention=plan.attention)), profile)
