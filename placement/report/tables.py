"""The page's tables: every figure has one, so that nothing can be learned from a picture alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from specmoe.placement.plan import PlacementPlan
from specmoe.placement.report.findings import Findings, Placement
from specmoe.placement.report.headline import percent_change
from specmoe.placement.shown_metrics import LOAD_IMBALANCE, REMOTE_COPIES, shown_metrics

MAX_MATRIX = 32
MAX_DOMAINS = 32


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number as written; best: the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """muted: a baseline, set back on the page."""

    heading: str
    cells: Sequence[Cell]
    muted: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """columns: headings, the first above the rows' own."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]


def gain_table(findings: Findings, setting: str, placements: Sequence[Placement]) -> Table:
    """The placements of one setting, the means over layers."""
    metrics = shown_metrics(several_nodes=placements[0].plan.topology.num_nodes > 1)
    means = [placement.result.mean for placement in placements]
    best = [metric.best(means) for metric in metrics]
    rows = []
    for placement in placements:
        mean, linear = placement.result.mean, findings.before(placement).result.mean
        written = [metric.write(mean) for metric in metrics]
        cells = [Cell(text=text, best=text == top) for text, top in zip(written, best, strict=True)]
        cells.insert(1, Cell(text=_beside(mean.remote_copies_per_token, linear.remote_copies_per_token)))
        rows.append(Row(heading=placement.short, cells=cells, muted=placement.result.baseline))
    headings = [f"{metric.heading}{' (%)' if metric.scale == 100 else ''}" for metric in metrics]
    headings.insert(1, "Beside linear")
    return Table(caption=f"{setting}: means over layers", columns=["Placement", *headings], rows=rows)


def _beside(new: float, old: float) -> str:
    return "–" if old == 0 or new == old else percent_change(new, old)


def layer_table(setting: str, placements: Sequence[Placement]) -> Table:
    """Remote copies per token and load imbalance of each placement of one setting in every layer."""
    rows = []
    for row, layer_id in enumerate(placements[0].result.layer_ids):
        layers = [placement.result.layers[row] for placement in placements]
        cells = [Cell(text=f"{REMOTE_COPIES.write(layer)} ({LOAD_IMBALANCE.write(layer)})") for layer in layers]
        rows.append(Row(heading=str(layer_id), cells=cells))
    caption = f"{setting}: remote copies per token (load imbalance)"
    return Table(caption=caption, columns=["Layer", *(placement.short for placement in placements)], rows=rows)


def domain_table(findings: Findings, setting: str, placements: Sequence[Placement]) -> Table:
    """Remote copies per token and load imbalance of the placements of one setting for each domain, largest first."""
    rows = []
    for place in largest_domains(findings):
        parts = [placement.result.domains[place] for placement in placements]
        cells = [f"{parts[0].num_tokens:,}", f"{100 * findings.distances[place]:.1f}"]
        cells += [f"{REMOTE_COPIES.write(part.mean)} ({LOAD_IMBALANCE.write(part.mean)})" for part in parts]
        rows.append(Row(heading=parts[0].domain, cells=[Cell(text=text) for text in cells]))
    columns = ["Domain", "Tokens", "Other experts (%)", *(placement.short for placement in placements)]
    caption = f"{setting}: remote copies per token (load imbalance of its tokens), means over layers"
    return Table(caption=caption, columns=columns, rows=rows)


def largest_domains(findings: Findings) -> list[int]:
    """The places of at most MAX_DOMAINS domains among those of each result, by falling number of tokens."""
    domains = findings.evaluation.results[0].domains
    return sorted(range(len(domains)), key=lambda place: -domains[place].num_tokens)[:MAX_DOMAINS]


def load_table(setting: str, placements: Sequence[Placement]) -> Table:
    """Each rank's load over the mean, the mean over layers and the heaviest layer; placements of one setting."""
    rows = [
        Row(
            heading=str(rank),
            cells=[
                Cell(text=f"{placement.detail.load[:, rank].mean():.3f} ({placement.detail.load[:, rank].max():.3f})")
                for placement in placements
            ],
        )
        for rank in range(placements[0].plan.ep_size)
    ]
    caption = f"{setting}: load over the mean rank's, mean over layers (heaviest layer)"
    return Table(caption=caption, columns=["Rank", *(placement.short for placement in placements)], rows=rows)


def table_use_table(plans: Iterable[Placement]) -> Table:
    """What each plan's token table covers and brings."""
    rows = []
    for plan in plans:
        use = plan.table
        if use is not None:
            shares = [f"{100 * share:.1f} %" for share in (use.known_ids, use.known_tokens, use.followed)]
            copies = [f"{use.copies_without:.3f}", f"{use.copies_with:.3f}"]
            cells = [plan.plan.attention, f"{use.num_ids:,}", *shares, *copies]
            rows.append(Row(heading=plan.label, cells=[Cell(text=text) for text in cells]))
    columns = (
        *("Plan", "Attention", "Token ids", "Ids known", "Tokens known", "Followed"),
        *("Copies without table", "Copies with table"),
    )
    return Table(caption="Token tables on this trace", columns=columns, rows=rows)


def traffic_table(placement: Placement, *, of_nodes: bool) -> Table:
    """Hidden states per 1,000 tokens from each home rank or node; sums alone past MAX_MATRIX of them."""
    what = "node" if of_nodes else "rank"
    matrix = 1000 * (placement.detail.node_rows if of_nodes else placement.detail.rows)
    sums = np.stack([matrix.sum(axis=1), matrix.sum(axis=0)], axis=1)
    is_whole = len(matrix) <= MAX_MATRIX
    rows = [
        Row(heading=f"{what} {number}", cells=_numbers(number, matrix[number] if is_whole else (), sums[number]))
        for number in range(len(matrix))
    ]
    columns = [f"to {what} {number}" for number in range(len(matrix))] if is_whole else []
    caption = f"{placement.label}: hidden states between {what}s per 1,000 tokens, mean over layers"
    return Table(caption=caption, columns=["From", *columns, "sent", "received"], rows=rows)


def _numbers(own: int, values: Iterable[float], sums: Iterable[float]) -> list[Cell]:
    entries = ["–" if other == own else f"{value:.1f}" for other, value in enumerate(values)]
    return [Cell(text=text) for text in [*entries, *(f"{value:.1f}" for value in sums)]]


def capacity_table(setting: str, placements: Iterable[Placement]) -> Table:
    """Shares of the (token, expert) pairs, and of the gate weight in brackets, that a bound loses or reroutes."""
    rows = []
    for placement in placements:
        for drop, reroute in zip(placement.capacity[::2], placement.capacity[1::2], strict=True):
            lost, kept = drop.mean, reroute.mean
            cells = [
                *(f"{drop.factor:g}", drop.level, _share(lost.lost_pair_rate, lost.lost_gate_share)),
                f"{lost.heaviest_load:.3f}",
                _share(kept.lost_pair_rate, kept.lost_gate_share),
                _share(kept.rerouted_pair_rate, kept.rerouted_gate_share),
                f"{kept.heaviest_load:.3f}",
            ]
            muted = placement.result.baseline
            rows.append(Row(heading=placement.short, cells=[Cell(text=text) for text in cells], muted=muted))
    columns = (
        *("Placement", "Factor", "Level", "Drop: lost", "Drop: heaviest load"),
        *("Reroute: lost", "Reroute: rerouted", "Reroute: heaviest load"),
    )
    return Table(caption=f"{setting}: % of (token, expert) pairs (% of the gate weight)", columns=columns, rows=rows)


def _share(pairs: float, gate: float) -> str:
    return f"{100 * pairs:.1f} % ({100 * gate:.1f} %)"


def drift_table(findings: Findings) -> Table:
    """What each plan costs on the older profile and on this trace."""
    rows = []
    for plan, moved in zip(findings.plans, findings.drifts, strict=True):
        assert moved.plan is not None
        both = (moved.plan.on_old, moved.plan.on_new)
        cells = [metric.write(metrics) for metric in (REMOTE_COPIES, LOAD_IMBALANCE) for metrics in both]
        rows.append(Row(heading=plan.label, cells=[Cell(text=text) for text in [*cells, moved.verdict]]))
    columns = (
        *("Plan", "Remote copies, older", "Remote copies, this trace"),
        *("Load imbalance, older", "Load imbalance, this trace", "Verdict"),
    )
    return Table(caption="Means over layers on the older profile and on this trace", columns=columns, rows=rows)


def drift_layer_table(findings: Findings) -> Table:
    """How far the routing moved in each layer."""
    moved = findings.drifts[0]
    rows = [
        Row(heading=str(layer_id), cells=[Cell(text=f"{100 * distance:.1f}")])
        for layer_id, distance in zip(moved.layer_ids, moved.distance_of_layer, strict=True)
    ]
    return Table(caption="% of the pairs that went to other experts", columns=["Layer", "% moved"], rows=rows)


def replica_table(plan: Placement) -> Table:
    """Which experts have several copies in each layer, and how many."""
    rows = []
    for layer_id, experts in zip(plan.plan.layer_ids.tolist(), plan.plan.physical_to_logical, strict=True):
        numbers, copies = np.unique(experts, return_counts=True)
        pairs = [
            f"{expert} ×{count}" for expert, count in zip(numbers.tolist(), copies.tolist(), strict=True) if count > 1
        ]
        rows.append(Row(heading=str(layer_id), cells=[Cell(text=", ".join(pairs) or "none")]))
    return Table(caption=f"{plan.label}: experts with several copies", columns=["Layer", "Expert × copies"], rows=rows)


def source_table(findings: Findings) -> Table:
    """The files behind the page, by fingerprint."""
    trace = findings.evaluation.trace
    facts = [
        ("trace", str(findings.profile_path)),
        ("its source", trace.source or "not named"),
        ("its fingerprint", trace.profile_fingerprint),
        ("its model's fingerprint", findings.profile.model_fingerprint or "not named"),
    ]
    for plan in findings.plans:
        how = f"{plan.plan.method}, seed {plan.plan.seed}, {plan.plan.ep_size} ranks, attention {plan.plan.attention}"
        facts += [
            (f"plan {plan.label}", plan.result.name),
            ("solved by", how),
            ("its objective there", _objective(plan.plan)),
            ("its digest", plan.plan.digest),
            ("solved from profile", plan.plan.profile_fingerprint or "not named"),
        ]
    rows = [Row(heading=heading, cells=[Cell(text=text)]) for heading, text in facts]
    return Table(caption="Files and fingerprints (SHA-256)", columns=["What", "Which"], rows=rows)


def _objective(plan: PlacementPlan) -> str:
    """The objective on the profile that a plan was solved from, beside the proven bound."""
    if plan.objective is None:
        return "not named"
    weighted = " weighted by link cost" if plan.topology.inter_node_gb_per_s is not None else ""
    text = f"{plan.objective:.3f} remote copies per token{weighted}"
    if plan.bound is None or plan.gap is None:
        return f"{text}, no proven bound"
    return f"{text}, proven lower bound {plan.bound:.3f}, gap {100 * plan.gap:.1f} %"
