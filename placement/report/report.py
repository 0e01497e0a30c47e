"""`report`: replay a trace under plans and write what happens as a page and, where asked, as plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from specmoe.atomic import refuse_existing
from specmoe.placement.report.findings import Findings, OnStep, Part, gather, whole, with_drift
from specmoe.placement.report.headline import cautions, headline
from specmoe.placement.report.page import write_page
from specmoe.placement.report.plots import refuse_plots, write_plots

CAPACITY = (1.0, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, and the files that show it."""

    findings: Findings
    page: Path
    plots: tuple[Path, ...]

    @property
    def headline(self) -> str:
        """What is gained, in one sentence."""
        return headline(self.findings)

    def to_json(self) -> dict[str, Any]:
        """The page's sentences, each plan's drift, and all that `Evaluation.to_json` has."""
        return {
            "page": str(self.page),
            "plots": [str(plot) for plot in self.plots],
            "headline": self.headline,
            "cautions": cautions(self.findings),
            **self.findings.evaluation.to_json(),
            "drift": [moved.to_json() for moved in self.findings.drifts],
        }


def report(
    plans: str | PathLike[str] | Sequence[str | PathLike[str]],
    profile: str | PathLike[str],
    page: str | PathLike[str],
    *,
    plots: str | PathLike[str] | None = None,
    capacity: Sequence[float] = CAPACITY,
    since: str | PathLike[str] | None = None,
    part: Part = whole,
    force: bool = False,
    on_step: OnStep | None = None,
) -> Report:
    """Replay the trace in the file `profile` under each plan and the baselines, and write the HTML file `page`.

    plots: a folder for the main figures as PNG files. capacity: the factors of the bounds to show, where the trace has
    gate weights. since: an older profile, to tell how far the routing has moved. part: takes what is to be replayed out
    of a profile, such as one phase. on_step is called with what is at hand.

    Raises what `evaluate` raises, and `OutputError` where a file is in the way and `force` is not given.
    """
    files = [plans] if isinstance(plans, str | PathLike) else plans
    page, folder = Path(page), None if plots is None else Path(plots)
    refuse_existing(page, force=force, inputs=[Path(file) for file in (*files, profile)])
    if folder is not None:
        refuse_plots(folder, force=force)
    findings = gather([Path(file) for file in files], Path(profile), capacity=capacity, part=part, on_step=on_step)
    if since is not None:
        findings = with_drift(findings, Path(since), part=part)
    written = [] if folder is None else write_plots(findings, folder, force=force)
    write_page(findings, page, force=force)
    return Report(findings=findings, page=page, plots=tuple(written))
