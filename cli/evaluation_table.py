"""An evaluation as tables: one row per placement, one row per layer, one row per capacity bound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specmoe.placement.capacity_outlook import BoundOutlook
from specmoe.placement.evaluate import Evaluation, PlanResult
from specmoe.placement.metrics import PlacementMetrics
from specmoe.placement.step_time import mean_step_time


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric as shown: its heading, its name, whether more is better, and how a value is written."""

    heading: str
    metric: str
    more_is_better: bool = False
    write: Callable[[float], str] = "{:.3f}".format


COLUMNS = (
    Column(heading="remote copies\nper token", metric="remote_copies_per_token"),
    Column(heading="other nodes\nper token", metric="internode_copies_per_token"),
    Column(heading="local\nactivation", metric="local_activation_rate", more_is_better=True, write="{:.1%}".format),
    Column(heading="load\nimbalance", metric="load_imbalance"),
    Column(heading="balancedness", metric="balancedness", more_is_better=True),
    Column(heading="token\nimbalance", metric="token_imbalance"),
)
STEP_COLUMN = Column(heading="modelled\nstep, µs", metric="step_us", write="{:.1f}".format)


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """The means over layers, the best of each column marked, and what one must know to read them."""
    results = evaluation.results
    several_nodes = any(result.plan.topology.num_nodes > 1 for result in results)
    columns = [column for column in COLUMNS if several_nodes or column.metric != "internode_copies_per_token"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("placement", overflow="fold", vertical="bottom")
    for column in columns:
        table.add_column(column.heading, justify="right", vertical="bottom")
    cells = [_marked([getattr(result.mean, column.metric) for result in results], column) for column in columns]
    if results[0].step_times:
        table.add_column(STEP_COLUMN.heading, justify="right", vertical="bottom")
        cells.append(_marked([mean_step_time(result.step_times).step_us for result in results], STEP_COLUMN))
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
        cells = [_layer_cell(result.layers[row]) for result in evaluation.results]
        table.add_row(str(layer_id), *cells)
    return Group(Text("Remote copies per token (load imbalance), layer by layer"), "", table)


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


def _layer_cell(metrics: PlacementMetrics) -> str:
    return f"{metrics.remote_copies_per_token:.3f} ({metrics.load_imbalance:.2f})"


def _marked(values: Sequence[float], column: Column) -> list[Text]:
    """The values as text, the best ones bold and with a star; what reads the same is equally good."""
    written = [column.write(value) for value in values]
    best = column.write(max(values) if column.more_is_better else min(values))
    if len(set(written)) == 1:
        return [Text(text) for text in written]
    return [Text(text + " *", style="bold") if text == best else Text(text + "  ") for text in written]


def _trace_line(evaluation: Evaluation) -> str:
    trace = evaluation.trace
    source = f" of {trace.source}" if trace.source else ""
    return (
        f"{trace.num_tokens:,} tokens in {trace.num_requests:,} requests{source}; {trace.num_layers} MoE layers, "
        f"{trace.num_logical_experts} experts, top-{trace.top_k}; means over layers"
    )


def _notes(evaluation: Evaluation) -> list[str]:
    fitted_here = [result.name for result in evaluation.results if _fitted_here(result, evaluation)]
    notes = ["* best of its column; eplb is fitted to the counts of this very trace, its best case"]
    if fitted_here:
        notes.append(f"fitted on this very profile, expect less on other text: {', '.join(fitted_here)}")
    unread = [result.name for result in evaluation.results if _has_tables(result)]
    if unread and not evaluation.trace.has_token_ids:
        notes.append(f"the trace has no token ids, so these plans' token tables went unread: {', '.join(unread)}")
    return notes


def _has_tables(result: PlanResult) -> bool:
    return result.plan.token_affinity is not None or result.plan.token_to_rank is not None


def _fitted_here(result: PlanResult, evaluation: Evaluation) -> bool:
    return not result.baseline and result.plan.profile_fingerprint == evaluation.trace.profile_fingerprint
