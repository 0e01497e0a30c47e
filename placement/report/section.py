"""What a section of the page is made of: words, figures to draw, and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from specmoe.placement.report.findings import Findings
from specmoe.placement.report.tables import Table


@dataclass(frozen=True, kw_only=True)
class Figure:
    """name: which drawing of `page/main.js`; alternative: what it shows, in words; placement: whose, by its place."""

    name: str
    alternative: str
    unit: str
    source: str
    title: str = ""
    placement: int | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """name: the anchor. Of `gain`, `domains` and `sources` the table is shown at once, of the others when asked for."""

    name: str
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default=())


def trace_source(findings: Findings) -> str:
    """The trace in a few words: file, tokens, requests, and where it is from."""
    trace = findings.evaluation.trace
    origin = f" ({trace.source})" if trace.source else ""
    return f"{findings.profile_path.name}, {trace.num_tokens:,} tokens in {trace.num_requests:,} requests{origin}."
