"""docs/capacity.md from the benchmark's outcomes."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from outcome import Outcome

LEVELS, OVERFLOWS, DIVISIONS = ("expert", "device"), ("drop", "reroute"), ("even", "plan")
# Heaviest loads at which the placements are compared.
SAME_LOADS = (1.0, 1.05, 1.1)

HEAD = """# Capacity bounds, with and without the optimized placement

Made by `benchmarks/capacity.py` from its result, [capacity.json](../benchmarks/results/capacity.json). A
`CapacityPolicy(factor, level, overflow, division)` bounds the (token, expert) pairs of one forward pass that an expert
or, at level `device`, a rank serves to `factor` times the mean of a slot for each slot that it has; pairs beyond it are
dropped, or rerouted to experts of the token's own rank that have room. It is off by default, and lossy.

The bound is enforced on each source rank by itself, before anything is sent, so that nothing has to be exchanged first:
every rank has its own part of it. Division `even` gives every source rank the same part. That works against an
optimized plan: it has a rank's tokens choose the experts of that same rank, which is what saves the traffic, and those
pairs soon fill that rank's own part, while the other ranks leave theirs unused. Division `plan`, the default for plans
that say what traffic they expect (`expected_pairs`; `solve` writes it), makes the parts as large as that traffic. The
bound as a whole is the same. Old plans, and those from counts alone, are bounded evenly.

What remains is chance: a source knows its own tokens alone, so it must drop what exceeds its part even where another
source leaves its own unused. Under `dp` all tokens of a request sit on one rank and want much the same experts, so what
a source asks for swings from batch to batch, more under an optimized plan than under linear; under `tp` every source
has tokens of all requests, and swings less. In a larger batch the swings are smaller, so rerouting is measured on a
batch of four times as many requests as well. A heaviest load of 1 leaves no room for them, and the pairs that want a
full rank and start there have nowhere to go: rerouting keeps to the token's own rank, and an optimized plan has most
pairs start where they are served. Plans that are solved for a more even load (`--max-imbalance 1.01`) were tried on the
profile's own requests, and did no better on the whole.

Heaviest load: the pairs of the busiest rank over the mean of what the router chose, averaged over batches and layers;
what a step waits for. Dropped and rerouted: shares of all pairs. Perplexity is on held-out text.
"""


def page(about: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The whole page; outcomes of the same attention, plan and bound stand in one row."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    sizes = " and ".join(f"{number:,} in batches of {size}" for size, number in about["tokens"].items())
    lines = [
        HEAD,
        f"The demo's model, {about['num_ranks']} ranks, held-out requests of {about['request_tokens']} tokens; tokens: "
        f"{sizes}; {versions}; {about['machine']}; {about['date']}; `{about['command']}`.\n",
    ]
    parts: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        parts.setdefault((outcome.attention, outcome.batch_requests), []).append(outcome)
    for part, own in parts.items():
        lines += _same_load(*part, own)
    for part, own in parts.items():
        lines += _every_bound(*part, own)
    return "\n".join(lines) + "\n"


def _same_load(attention: str, batch_requests: int, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Drops that go with one heaviest load, between the factors on a straight line."""
    plans = list(dict.fromkeys(outcome.plan for outcome in outcomes))
    measured = {(outcome.overflow, outcome.division) for outcome in outcomes}
    overflows = [overflow for overflow in OVERFLOWS if (overflow, "plan") in measured]
    divisions = [division for division in DIVISIONS if ("reroute", division) in measured]
    columns = [(plan, division) for plan in plans for division in divisions]
    yield f"\n## Dropped pairs for the same heaviest load, `{attention}`, batches of {batch_requests} requests\n"
    yield "By interpolation between the factors below; empty where no factor is as tight. In brackets the pairs"
    yield "rerouted. The last columns are dropped pairs over linear's, both under division `plan`, the default.\n"
    names = [f"{plan}, {division}" for plan, division in columns] + [f"{plan} / linear" for plan in plans[1:]]
    yield f"| level | overflow | heaviest load | {' | '.join(names)} |"
    yield "|---" * (3 + len(names)) + "|"
    halved: list[str] = []
    for level, overflow, load in product(LEVELS, overflows, SAME_LOADS):
        at = {column: _at_load(load, level, overflow, *column, outcomes) for column in columns}
        shown = [_share(at[column], overflow) for column in columns]
        linear = at[plans[0], "plan"]
        ratios = [_ratio(at[plan, "plan"], linear) for plan in plans[1:]]
        if overflow == "reroute":
            halved += [f"{plan}, {level}, {load}" for plan in plans[1:] if _is_halved(at[plan, "plan"], linear)]
        yield f"| {level} | {overflow} | {load} | {' | '.join([*shown, *ratios])} |"
    cases = len(plans[1:]) * len(LEVELS) * len(SAME_LOADS)
    named = "; ".join(halved) or "none"
    yield f"\nRerouting drops at most half of linear's pairs in {len(halved)} of {cases} cases: {named}."
    free = [outcome for outcome in outcomes if outcome.factor is None]
    loads = ", ".join(f"{outcome.plan} {outcome.heaviest_load:.3f} ({outcome.excess:.2%})" for outcome in free)
    yield f"Without a bound the heaviest load is: {loads}."
    yield "In brackets the pairs above the mean load: what even a bound that knew all ranks' tokens would have to drop,"
    yield "or reroute, for a heaviest load of 1."


def _at_load(
    load: float, level: str, overflow: str, plan: str, division: str, outcomes: Sequence[Outcome]
) -> tuple[float, float] | None:
    """The shares of dropped and rerouted pairs at a heaviest load; none above the one that the plan has by itself."""
    bound = level, overflow, division
    curve = [o for o in outcomes if o.plan == plan and (o.factor is None or (o.level, o.overflow, o.division) == bound)]
    points = sorted((outcome.heaviest_load, outcome.dropped, outcome.rerouted) for outcome in curve)
    loads, dropped, rerouted = zip(*points, strict=True)
    if load < loads[0]:
        return None
    return float(np.interp(load, loads, dropped)), float(np.interp(load, loads, rerouted))


def _share(found: tuple[float, float] | None, overflow: str) -> str:
    if found is None:
        return ""
    return f"{found[0]:.2%}" + (f" ({found[1]:.1%})" if overflow == "reroute" else "")


def _ratio(found: tuple[float, float] | None, linear: tuple[float, float] | None) -> str:
    return f"{found[0] / linear[0]:.2f}" if found and linear and linear[0] > 0 else ""


def _is_halved(found: tuple[float, float] | None, linear: tuple[float, float] | None) -> bool:
    return found is not None and linear is not None and found[0] <= linear[0] / 2


def _every_bound(attention: str, batch_requests: int, outcomes: Sequence[Outcome]) -> Iterator[str]:
    plans = list(dict.fromkeys(outcome.plan for outcome in outcomes))
    yield f"\n## Every bound, `{attention}`, batches of {batch_requests} requests\n"
    figures = ("perplexity", "heaviest load", "dropped", "rerouted")
    heads = [f"{figure}: {plan}" for figure in figures for plan in plans]
    yield f"| level | overflow | division | factor | {' | '.join(heads)} |"
    yield "|---" * (4 + len(heads)) + "|"
    by_plan = [[outcome for outcome in outcomes if outcome.plan == plan] for plan in plans]
    for row in zip(*by_plan, strict=True):
        one = row[0]
        bound = (
            "no bound | | |" if one.factor is None else f"{one.level} | {one.overflow} | {one.division} | {one.factor}"
        )
        cells = [f"{outcome.perplexity:.2f}" for outcome in row] + [f"{outcome.heaviest_load:.3f}" for outcome in row]
        cells += [f"{outcome.dropped:.2%}" for outcome in row] + [f"{outcome.rerouted:.2%}" for outcome in row]
        yield f"| {bound} | {' | '.join(cells)} |"
