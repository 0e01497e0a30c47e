"""The page's section on what each domain of the trace costs."""

from specmoe.placement.report.findings import Findings, Placement
from specmoe.placement.report.section import Section, trace_source
from specmoe.placement.report.tables import domain_table, largest_domains

EXPLANATION = (
    "A domain is a data file, or a value of the column that was named when the model was profiled. Each is judged as a "
    "part of the whole trace. Other experts: how far its routing is from that of the whole trace, as the % of its "
    "(token, expert) pairs that go elsewhere. In brackets the load imbalance of its tokens alone: what the ranks would "
    "bear were all traffic of this kind."
)


def domain_section(findings: Findings) -> Section:
    """Every domain's tokens, distance and cost; one sentence where the trace does not have several."""
    title = "By domain"
    if not findings.distances:
        return Section(name="domains", title=title, text=["The trace does not have several domains to compare."])
    text = [EXPLANATION, *(_extremes(plan, findings.before(plan)) for plan in findings.plans)]
    tables = [domain_table(findings, setting, group) for setting, group in findings.settings.items()]
    notes = [f"Source: {trace_source(findings)}"]
    num_domains, num_shown = len(findings.distances), len(largest_domains(findings))
    if num_shown < num_domains:
        notes.append(f"The {num_shown} largest of {num_domains:,} domains; specmoe evaluate --by-domain has them all.")
    return Section(name="domains", title=title, text=text, tables=tables, notes=notes)


def _extremes(plan: Placement, before: Placement) -> str:
    copies = [domain.mean.remote_copies_per_token for domain in plan.result.domains]
    dearest, cheapest = copies.index(max(copies)), copies.index(min(copies))
    parts = [
        f"{plan.result.domains[place].domain} ({copies[place]:.2f} remote copies per token, under linear "
        f"{before.result.domains[place].mean.remote_copies_per_token:.2f})"
        for place in (dearest, cheapest)
    ]
    return f"{plan.label} sends most for {parts[0]}, least for {parts[1]}."
