"""One solve of synthetic routing in a process of its own: seconds, memory, and what the plan saves elsewhere."""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from solver_suite.synthetic import TraceSize, synthetic_profile

from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.plan import Attention
from specmoe.placement.solve import solve
from specmoe.profiler.routing_profile import RoutingProfile

_WARM_UP = TraceSize(layers=2, experts=8, top_k=2, tokens=2000, vocabulary=500)
# As many as the largest profile has: the fewer requests are drawn, the more uneven any plan looks on them.
_HELD_OUT_TOKENS = 200_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is solved: a trace's size and a plan's options."""

    size: TraceSize
    ranks: int
    attention: Attention
    extra_slots: int
    bound_seconds: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """wall_s, cpu_s: of `solve` alone, cpu_s of all its threads; peak_mib: of the process, the trace in it.

    copies, imbalance: remote copies per token and heaviest over mean rank on other requests, by method.
    """

    case: Case
    wall_s: float
    cpu_s: float
    peak_mib: float
    copies: dict[str, float]
    imbalance: dict[str, float]


def measure_apart(case: Case) -> Measured:
    """Measure in a new process, for its peak memory."""
    program = [sys.executable, str(Path(__file__).parents[1] / "solver_scaling.py"), "--one", json.dumps(asdict(case))]
    found: dict[str, Any] = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    return Measured(**{**found, "case": case})


def case_from_json(text: str) -> Case:
    fields: dict[str, Any] = json.loads(text)
    return Case(**{**fields, "size": TraceSize(**fields["size"])})


def measure_here(case: Case) -> Measured:
    """Measure in this process; what is compiled at first use is compiled before."""
    asked: dict[str, Any] = {"attention": case.attention, "extra_slots": case.extra_slots, "best_effort": True}
    solve(synthetic_profile(_WARM_UP), 2, **asked)
    profile = synthetic_profile(case.size)
    wall, cpu = time.perf_counter(), time.process_time()
    plan = solve(profile, case.ranks, **asked, bound_seconds=case.bound_seconds)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    plans = {"auto": plan}
    for method in ("linear", "eplb"):
        plans[method] = solve(profile, case.ranks, method=method, **asked | {"bound_seconds": 0.0})
    other = _other_requests(case.size)
    metrics = {name: mean_metrics(measure_plan(plan, other.require_sample("scaling"))) for name, plan in plans.items()}
    return Measured(
        case=case,
        wall_s=wall,
        cpu_s=cpu,
        peak_mib=peak_mib,
        copies={name: found.remote_copies_per_token for name, found in metrics.items()},
        imbalance={name: found.load_imbalance for name, found in metrics.items()},
    )


def _other_requests(size: TraceSize) -> RoutingProfile:
    """The same model's routing of other text."""
    return synthetic_profile(replace(size, tokens=min(size.tokens, _HELD_OUT_TOKENS)), text_seed=1)
