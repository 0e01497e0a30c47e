"""How even loads get from expert counts alone: EPLB and `solve` on the shapes that EPLB's own figures are known for.

Counts follow Zipf's law with exponent 0.6, shuffled anew in every layer. Balancedness is the mean rank's load over the
heaviest one's, the mean over layers: by equal shares of an expert's copies, as EPLB counts, and by the dispatch table.

python benchmarks/balance.py
"""

import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from specmoe.placement.check import check_plan
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solve import solve
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and a machine; groups: the router's expert groups, 1 for none."""

    layers: int
    experts: int
    slots: int
    groups: int
    nodes: int
    ranks: int

    @property
    def machine(self) -> Topology:
        per_rank, per_node = self.slots // self.ranks, self.ranks // self.nodes
        return Topology(ranks_per_node=(per_node,) * self.nodes, slots=(per_rank,) * self.ranks)

    def profile(self, seed: int) -> RoutingProfile:
        """Counts alone."""
        rng = np.random.default_rng(seed)
        load = 1e6 * np.arange(1, self.experts + 1) ** -0.6
        counts = np.stack([rng.permutation(load) for _ in range(self.layers)]).astype(np.int64)
        return RoutingProfile(
            layer_ids=np.arange(self.layers, dtype=np.int32),
            expert_counts=counts,
            num_logical_experts=self.experts,
            top_k=8,
            num_tokens=int(counts[0].sum()) // 8,
            num_expert_groups=self.groups,
        )


SHAPES = (
    Shape(layers=58, experts=256, slots=288, groups=8, nodes=4, ranks=32),
    Shape(layers=58, experts=256, slots=288, groups=8, nodes=1, ranks=32),
    Shape(layers=58, experts=256, slots=288, groups=8, nodes=18, ranks=72),
    Shape(layers=58, experts=256, slots=320, groups=8, nodes=8, ranks=64),
    Shape(layers=48, experts=128, slots=128, groups=1, nodes=1, ranks=8),
    Shape(layers=16, experts=64, slots=64, groups=1, nodes=1, ranks=8),
    Shape(layers=60, experts=384, slots=416, groups=1, nodes=4, ranks=32),
)


def by_shares(plan: PlacementPlan, profile: RoutingProfile) -> float:
    """Balancedness when an expert's pairs are spread equally over its copies."""
    share = profile.expert_counts / plan.holds.sum(axis=1)
    load = (plan.holds * share[:, None, :]).sum(axis=2)
    return float((load.mean(axis=1) / load.max(axis=1)).mean())


def by_table(plan: PlacementPlan, profile: RoutingProfile) -> float:
    """Balancedness when every home rank uses every expert equally often, through the dispatch table."""
    report = check_plan(plan, profile)
    report.require_legal()
    assert report.load_of_rank is not None
    return float((1.0 / report.load_of_rank.max(axis=1)).mean())


def row(shape: Shape, seed: int) -> str:
    profile = shape.profile(seed)
    cells = [str(value) for value in (shape.layers, shape.experts, shape.slots, shape.groups, shape.nodes, shape.ranks)]
    for method in ("eplb", "auto"):
        begin = time.process_time()
        plan = solve(profile, shape.machine, method=method)
        seconds = time.process_time() - begin
        cells += [f"{by_shares(plan, profile):.4f}", f"{by_table(plan, profile):.4f}", f"{seconds:.1f}"]
    return "| " + " | ".join(cells) + " |"


@click.command()
@click.option("--seed", default=0, show_default=True)
def main(seed: int) -> None:
    """Print the table, and write it to benchmarks/results/balance.md."""
    solve(SHAPES[-2].profile(seed), SHAPES[-2].machine)  # compiles
    lines = [
        "# Balancedness from expert counts alone, by equal shares of copies and by the dispatch table",
        "",
        f"Zipf 0.6, shuffled per layer, seed {seed}; processor seconds.",
        "",
        "| layers | experts | slots | groups | nodes | ranks | EPLB, shares | EPLB, table | s "
        "| specmoe, shares | specmoe, table | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [row(shape, seed) for shape in SHAPES]
    table = "\n".join(lines) + "\n"
    click.echo(table)
    (RESULTS / "balance.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
