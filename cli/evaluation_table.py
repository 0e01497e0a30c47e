"""An evaluation as tables: one row per placement, per layer, per domain, per capacity bound."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specmoe.cli.terminal import printable
from specmoe.placement.capacity_outlook import BoundOutlook
from specmoe.placement.evaluate import Evaluation, PlanResult
from specmoe.placement.metrics import PlacementMetrics
from specmoe.placement.shown_metrics import BALANCEDNESS, LOAD_IMBALANCE, ShownMetric, shown_metrics
from specmoe.placement.step_time import mean_step_time

# "Remote copies per token" on two lines.
HEADING_WIDTH = 13


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """The means over layers, the best of each column marked, and what one must know to read them."""
    results = evaluation.results
    several_nodes = any(result.plan.topology.num_nodes > 1 for result in results)
    shown = shown_metrics(several_nodes=several_nodes)
    shown.insert(shown.index(LOAD_IMBALANCE) + 1, BALANCEDNESS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("placement", overflow="fold", vertical="bottom")
    for metric in shown:
        table.add_column(metric.heading.lower(), justify="right", vertical="bottom", max_width=HEADING_WIDTH)
    cells = [_cells(metric, results) for metric in shown]
    if results[0].step_times:
        table.add_column("modelled step, µs", justify="right", vertical="bottom", max_width=HEADING_WIDTH)
        steps = [f"{mean_step_time(result.step_times).step_us:.1f}" for result in results]
        cells.append(_marked(steps, best=min(steps, key=float)))
    for index, result in enumerate(results):
        table.add_row(result.name, *(texts[index] for texts in cells), style="dim" if result.baseline else "")
    return Group(Text(_trace_line(evaluation)), "", table, "", *map(Text, _notes(evaluation)))


def layer_table(evaluation: Evaluation) -> RenderableType:
    """Remote copies per token, and the load imbalance in brackets, of every placement at every layer."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", justify="right", vertical="bottom")
    for result in evaluation.results:
        table.add_column(result.name, justify="right", overflow="fold", vertical="bottom")
    for row, layer_id in enumerate(evaluation.results[0].layer_ids):
        cells = [_copies_and_load(result.layers[row]) for result in evaluation.results]
        table.add_row(str(layer_id), *cells)
    return Group(Text("Remote copies per token (load imbalance), layer by layer"), "", table)


def domain_table(evaluation: Evaluation) -> RenderableType:
    """Remote copies per token, and the load imbalance in brackets, of every placement for every domain."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("domain", overflow="fold", vertical="bottom")
    for heading in ("tokens", *(result.name for result in evaluation.results)):
        table.add_column(heading, justify="right", overflow="fold", vertical="bottom")
    for row, domain in enumerate(evaluation.results[0].domains):
        cells = [_copies_and_load(result.domains[row].mean) for result in evaluation.results]
        table.add_row(printable(domain.domain), f"{domain.num_tokens:,}", *cells)
    title = "Remote copies per token (load imbalance of its tokens alone) by domain, means over layers"
    return Group(Text(title), "", table)


def capacity_table(evaluation: Evaluation) -> RenderableType:
    """What capacity bounds would cost under every placement: pairs, in brackets their share of the gate weight."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("placement", "factor", "level"):
        table.add_column(heading, overflow="fold", vertical="bottom")
    for heading in ("drop:\nlost", "heaviest\nload", "reroute:\nlost", "\nrerouted", "heaviest\nload"):
        table.add_column(heading, justify="right", vertical="bottom")
    for result in evaluation.results:
        style = "dim" if result.baseline else ""
        for drop, reroute in zip(result.capacity[::2], result.capacity[1::2], strict=True):
            table.add_row(result.name, f"{drop.factor:g}", drop.level, *_capacity_cells(drop, reroute), style=style)
    title = "Under capacity bounds: pairs (their gate weight); heaviest rank's load over the mean without a bound"
    return Group(Text(title), "", table)


def _capacity_cells(drop: BoundOutlook, reroute: BoundOutlook) -> list[str]:
    return [
        f"{drop.mean.lost_pair_rate:.1%} ({drop.mean.lost_gate_share:.1%})",
        f"{drop.mean.heaviest_load:.3f}",
        f"{reroute.mean.lost_pair_rate:.1%} ({reroute.mean.lost_gate_share:.1%})",
        f"{reroute.mean.rerouted_pair_rate:.1%} ({reroute.mean.rerouted_gate_share:.1%})",
        f"{reroute.mean.heaviest_load:.3f}",
    ]


def _copies_and_load(metrics: PlacementMetrics) -> str:
    return f"{metrics.remote_copies_per_token:.3f} ({metrics.load_imbalance:.2f})"


def _cells(metric: ShownMetric, results: Sequence[PlanResult]) -> list[Text]:
    means = [result.mean for result in results]
    unit = "%" if metric.scale == 100 else ""
    best = metric.best(means)
    return _marked([metric.write(mean) + unit for mean in means], best=None if best is None else best + unit)


def _marked(written: Sequence[str], *, best: str | None) -> list[Text]:
    """The values as text, the best ones bold and with a star, unless all are equally good."""
    if len(set(written)) == 1:
        return [Text(text) for text in written]
    return [Text(text + " *", style="bold") if text == best else Text(text + "  ") for text in written]


def _trace_line(evaluation: Evaluation) -> str:
    trace = evaluation.trace
    source = f" of {printable(trace.source)}" if trace.source else ""
    return (
        f"{trace.num_tokens:,} tokens in {trace.num_requests:,} requests{source}; {trace.num_layers} MoE layers, "
        f"{trace.num_logical_experts} experts, top-{trace.top_k}; means over layers"
    )


def _notes(evaluation: Evaluation) -> list[str]:
    fitted_here = [result.name for result in evaluation.results if evaluation.is_in_sample(result)]
    notes = ["* best of its column; eplb is fitted to the counts of this very trace, its best case"]
    if fitted_here:
        notes.append(f"fitted on this very profile, expect less on other text: {', '.join(fitted_here)}")
    unread = [result.name for result in evaluation.results if result.has_table]
    if unread and not evaluation.trace.has_token_ids:
        notes.append(f"the trace has no token ids, so these plans' token tables went unread: {', '.join(unread)}")
    return notes
