"""The page's sections in their order: words, figures to draw, and a table beside each figure."""

from collections.abc import Callable, Sequence

from specmoe.placement.capacity import BATCH_TOKENS
from specmoe.placement.drift.drift import Drift
from specmoe.placement.report.domain_section import domain_section
from specmoe.placement.report.findings import Findings, Placement
from specmoe.placement.report.headline import cautions
from specmoe.placement.report.section import Figure, Section, trace_source
from specmoe.placement.report.tables import (
    capacity_table,
    drift_layer_table,
    drift_table,
    gain_table,
    layer_table,
    load_table,
    replica_table,
    source_table,
    table_use_table,
    traffic_table,
)
from specmoe.placement.shown_metrics import ShownMetric


def sections(findings: Findings, metrics: Sequence[ShownMetric]) -> list[Section]:
    """Every section of a report on `findings`; one without content says why in a sentence."""
    makers: list[Callable[[Findings], Section]] = [
        lambda found: _gain(found, metrics),
        lambda found: _layers(found, metrics),
        domain_section,
        _load,
        _one_layer,
        _replicas,
        _token_tables,
        _traffic,
        _capacity,
        *([_drift] if findings.drifts else []),
        _sources,
    ]
    return [make(findings) for make in makers]


def _gain(findings: Findings, metrics: Sequence[ShownMetric]) -> Section:
    trace = findings.evaluation.trace
    text = (
        f"{trace.num_layers} MoE layer{'' if trace.num_layers == 1 else 's'}, {trace.num_logical_experts} experts, "
        f"top-{trace.top_k}. The best of each column is marked; baselines are set back."
    )
    notes = [f"{metric.heading}: {metric.unit}." for metric in metrics]
    notes.append(f"Source: {trace_source(findings)}")
    tables = [gain_table(findings, setting, group) for setting, group in findings.settings.items()]
    return Section(name="gain", title="What is gained", text=[text], tables=tables, notes=[*cautions(findings), *notes])


def _layers(findings: Findings, metrics: Sequence[ShownMetric]) -> Section:
    plan = findings.plans[0]
    alternative = f"Remote copies in each layer. {_range(plan)}; {_range(findings.before(plan))}."
    figure = Figure(name="layers", alternative=alternative, unit=metrics[0].unit, source=trace_source(findings))
    tables = [layer_table(setting, group) for setting, group in findings.settings.items()]
    return Section(name="layers", title="Layer by layer", figures=[figure], tables=tables)


def _range(placement: Placement) -> str:
    copies = [layer.remote_copies_per_token for layer in placement.result.layers]
    return f"{placement.label} lies between {min(copies):.2f} and {max(copies):.2f}"


def _load(findings: Findings) -> Section:
    shown = _plans_and_what_they_replace(findings)
    figures = [
        Figure(
            name="load",
            title=placement.label,
            placement=findings.place(placement),
            alternative=f"Load of each rank and layer; the heaviest is {placement.detail.load.max():.2f} of the mean.",
            unit="(token, expert) pairs of a rank over the mean rank's",
            source=trace_source(findings),
        )
        for placement in shown
    ]
    tables = [load_table(setting, group) for setting, group in findings.settings.items()]
    text = "Blue ranks do less than the mean, orange ones more. The layer waits for its heaviest rank."
    return Section(name="load", title="Load per rank", text=[text], figures=figures, tables=tables)


def _one_layer(findings: Findings) -> Section:
    text = (
        "Experts that often act on the same token belong on one rank: then one hidden state serves them all. "
        "The maps show the same co-activation twice, experts in their usual order and in the plan's; squares on the "
        "diagonal are ranks."
    )
    unit = "co-activation as a cosine: 1, two experts are always used together; 0, never"
    counts = f"{findings.profile_path.name}, all {findings.profile.num_tokens:,} tokens that the profile counted."
    load = Figure(
        name="layer-load",
        title="Load of each rank in this layer",
        alternative="Load of each rank, grey in the usual order, blue under the plan; the dashed line is the mean.",
        unit="(token, expert) pairs of a rank over the mean rank's",
        source=trace_source(findings),
    )
    if findings.profile.coactivation_counts is None:
        text = "The profile has no co-activation counts, so the maps are left out."
        return Section(name="one-layer", title="One layer", text=[text], figures=[load])
    maps = [
        Figure(name=name, title=title, alternative=f"Co-activation of experts, {words}.", unit=unit, source=counts)
        for name, title, words in (
            ("before", "Before: the usual order", "in the order of the checkpoint"),
            ("after", "After: the plan's order", "in the order of the plan's ranks"),
        )
    ]
    return Section(name="one-layer", title="Co-activation in one layer", text=[text], figures=[*maps, load])


def _replicas(findings: Findings) -> Section:
    with_replicas = [plan for plan in findings.plans if plan.plan.num_physical_experts > plan.plan.num_logical_experts]
    if not with_replicas:
        return Section(name="replicas", title="Replicas", text=["No plan holds an expert twice."])
    figures = [
        Figure(
            name="replicas",
            title=plan.label,
            placement=findings.place(plan),
            alternative=f"{_num_replicas(plan):,} replicas in each layer; the stronger the colour, the more copies.",
            unit="copies of an expert, by layer and expert",
            source=f"{plan.result.name}.",
        )
        for plan in with_replicas
    ]
    text = "A copy on a token's own rank costs no transfer; a second copy elsewhere also shares an expert's load."
    tables = [replica_table(plan) for plan in with_replicas]
    return Section(name="replicas", title="Replicas", text=[text], figures=figures, tables=tables)


def _num_replicas(plan: Placement) -> int:
    return plan.plan.num_physical_experts - plan.plan.num_logical_experts


def _token_tables(findings: Findings) -> Section:
    title = "Token tables"
    used = [plan for plan in findings.plans if plan.table is not None]
    if not used:
        has_some = any(plan.result.has_table for plan in findings.plans)
        reason = "the trace has no token ids to look up" if has_some else "no plan has one"
        return Section(name="tables", title=title, text=[f"Nothing to show: {reason}."])
    text = [
        "A token table says where a token (attention tp) or its request (attention dp) should start. Ids known: of the "
        "table's token ids, those with an opinion. Tokens known: of the trace's tokens, those with such an id. "
        "Followed: tokens or requests with an opinion that did start there; the others gave way to an even spread.",
        *(_table_sentence(plan) for plan in used),
    ]
    notes = [f"Source: {trace_source(findings)}"]
    return Section(name="tables", title=title, text=text, tables=[table_use_table(used)], notes=notes)


def _table_sentence(plan: Placement) -> str:
    use = plan.table
    assert use is not None
    return (
        f"{plan.label}: the placement alone needs {use.copies_without:.2f} remote copies per token, with its table "
        f"{use.copies_with:.2f}; the table knows {100 * use.known_tokens:.0f} % of the trace's tokens."
    )


def _traffic(findings: Findings) -> Section:
    shown = _plans_and_what_they_replace(findings)
    figures = [
        Figure(
            name="traffic",
            title=placement.label,
            placement=findings.place(placement),
            alternative=f"{1000 * placement.detail.rows.sum():,.0f} hidden states travel per 1,000 tokens.",
            unit="hidden states from a home rank (row) to a serving rank (column) per 1,000 tokens, mean over layers",
            source=trace_source(findings),
        )
        for placement in shown
    ]
    tables = [traffic_table(placement, of_nodes=False) for placement in shown]
    several = [placement for placement in shown if placement.plan.topology.num_nodes > 1]
    tables += [traffic_table(placement, of_nodes=True) for placement in several]
    return Section(name="traffic", title="Traffic between ranks and nodes", figures=figures, tables=tables)


def _capacity(findings: Findings) -> Section:
    title = "Capacity trade-off"
    if not any(placement.capacity for placement in findings.placements):
        reason = "the trace has no gate weights" if _lacks_gate_weights(findings) else "no factors were asked for"
        return Section(name="capacity", title=title, text=[f"Nothing to show: {reason}."])
    text = (
        "Bounding an expert's or a rank's load is lossy and off unless it is asked for. A factor of 1 leaves room for "
        f"an even spread alone. Every source rank has its own part of the bound{_division(findings)}."
    )
    figure = Figure(
        name="capacity",
        alternative="(Token, expert) pairs that find no room, by capacity factor.",
        unit="% of the (token, expert) pairs lost, mean over layers",
        source=f"{findings.profile_path.name}, {_capacity_tokens(findings)}, in batches of {BATCH_TOKENS:,}.",
    )
    tables = [capacity_table(setting, group) for setting, group in findings.settings.items()]
    return Section(name="capacity", title=title, text=[text], figures=[figure], tables=tables)


def _division(findings: Findings) -> str:
    """In words: whose bounds are divided by the traffic that the plan expects, and whose evenly."""
    bounded = [placement for placement in findings.placements if placement.capacity]
    by_plan = [placement.label for placement in bounded if placement.capacity[0].division == "plan"]
    if not by_plan:
        return ", the same for all"
    rest = "" if len(by_plan) == len(bounded) else ", under the others the same for all"
    return f": under {', '.join(by_plan)} as the plan expects its traffic{rest}"


def _capacity_tokens(findings: Findings) -> str:
    is_all = findings.capacity_tokens == findings.evaluation.trace.num_tokens
    return f"{'all' if is_all else 'the first'} {findings.capacity_tokens:,} tokens"


def _lacks_gate_weights(findings: Findings) -> bool:
    sample = findings.profile.sample
    return sample is None or sample.gate_weights is None


def _drift(findings: Findings) -> Section:
    moved = findings.drifts[0]
    assert findings.older_path is not None
    chance = "" if moved.by_chance is None else f"; chance alone explains up to {100 * moved.by_chance:.1f} %"
    text = [
        f"Since {findings.older_path.name} {100 * moved.distance:.1f} % of the (token, expert) pairs went to other "
        f"experts{chance}. A plan costs less on the profile that it was solved from than on any other text; what "
        "solving anew would gain, specmoe drift tells.",
        *(f"{plan.label}: {drift.verdict}. {_sentence(drift.reason)}" for plan, drift in _drifted(findings)),
    ]
    older = f"{findings.older_path.name}, {findings.older_tokens:,} tokens, against {trace_source(findings)}"
    figure = Figure(
        name="drift",
        alternative="How far the routing moved in each layer.",
        unit="% of the (token, expert) pairs that went to other experts",
        source=older,
    )
    tables = [drift_table(findings), drift_layer_table(findings)]
    return Section(name="drift", title="Drift", text=text, figures=[figure], tables=tables)


def _drifted(findings: Findings) -> list[tuple[Placement, Drift]]:
    return list(zip(findings.plans, findings.drifts, strict=True))


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _sources(findings: Findings) -> Section:
    text = "Everything above was measured on this trace; docs/evaluate.md defines each number."
    return Section(name="sources", title="Sources", text=[text], tables=[source_table(findings)])


def _plans_and_what_they_replace(findings: Findings) -> list[Placement]:
    """Every plan after the `linear` of its setting, each once."""
    shown: list[Placement] = []
    for plan in findings.plans:
        shown += [placement for placement in (findings.before(plan), plan) if not _is_in(placement, shown)]
    return shown


def _is_in(placement: Placement, shown: Sequence[Placement]) -> bool:
    return any(placement is other for other in shown)
