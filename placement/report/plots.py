"""The main figures as PNG files for papers, drawn by matplotlib where that is installed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specmoe.atomic import atomic_file, refuse_existing
from specmoe.errors import OutputError, UsageError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.report.findings import Findings, Placement
from specmoe.placement.report.payload import similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito for plans, greys and dashes for baselines.
PLAN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#882255", "#332288")
BASELINE_STYLES = {"linear": ("#333333", "-"), "round_robin": ("#888888", ":"), "eplb": ("#666666", "--")}
WIDTH_INCHES = 6.3
DOTS_PER_INCH = 300


def refuse_plots(folder: Path, *, force: bool) -> None:
    """Raise `UsageError` where matplotlib is missing, `OutputError` where a plot may not be written."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--png needs matplotlib, which is not here; run pip install 'specmoe[plots]'") from error
    if not folder.is_dir():
        refuse_existing(folder, force=False)
        return
    for name in PLOTS:
        refuse_existing(folder / name, force=force)


def write_plots(findings: Findings, folder: Path, *, force: bool = False) -> list[Path]:
    """Draw into `folder`, which is made where it is missing, every plot that the findings have something for."""
    refuse_plots(folder, force=force)
    from matplotlib import rc_context

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    written = []
    for name, draw in PLOTS.items():
        with rc_context({"font.size": 8, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False}):
            figure = draw(findings)
            if figure is None:
                continue
            with atomic_file(folder / name, force=force) as temporary:
                figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
            written.append(folder / name)
    return written


def _remote_copies(findings: Findings) -> "Figure":
    figure, panels = _panels(len(findings.settings), 1, height=2.2)
    for (axes,), (setting, placements) in zip(panels, findings.settings.items(), strict=True):
        for placement in placements:
            copies = [layer.remote_copies_per_token for layer in placement.result.layers]
            _line(axes, findings, placement, placement.result.layer_ids, copies)
        axes.set(xlabel="decoder layer", ylabel="remote copies per token", title=setting, ylim=(0, None))
        axes.legend(frameon=False, ncols=4, fontsize=7)
    return figure


def _load(findings: Findings) -> "Figure":
    def draw(axes: "Axes", placement: Placement, pair: Sequence[Placement]) -> None:
        reach = max(0.05, *(float(np.abs(shown.detail.load - 1).max()) for shown in pair))
        image = axes.imshow(placement.detail.load, aspect="auto", cmap="PuOr_r", vmin=1 - reach, vmax=1 + reach)
        axes.set(xlabel="rank", ylabel="MoE layer")
        axes.figure.colorbar(image, ax=axes, label="load over the mean")

    return _before_and_after(findings, draw, height=2.6)


def _traffic(findings: Findings) -> "Figure":
    def draw(axes: "Axes", placement: Placement, pair: Sequence[Placement]) -> None:
        most = 1000 * max(shown.detail.rows.max() for shown in pair)
        rows = 1000 * placement.detail.rows
        image = axes.imshow(np.where(np.eye(len(rows), dtype=bool), np.nan, rows), cmap="Blues", vmin=0, vmax=most)
        axes.set(xlabel="serving rank", ylabel="home rank")
        axes.figure.colorbar(image, ax=axes, label="hidden states\nper 1,000 tokens")

    return _before_and_after(findings, draw, height=2.6)


def _coactivation(findings: Findings) -> "Figure | None":
    counts = findings.profile.coactivation_counts
    if counts is None:
        return None

    def draw(axes: "Axes", placement: Placement, _: Sequence[Placement]) -> None:
        layer = _most_changed_layer(findings)
        experts = placement.plan.physical_to_logical[layer]
        values = similarity(counts[layer])
        top = float(np.quantile(values, 0.995))
        image = axes.imshow(values[np.ix_(experts, experts)], cmap="Blues", vmin=0, vmax=top, interpolation="nearest")
        for bound in placement.plan.slot_offsets[1:-1] - 0.5:
            axes.axhline(bound, color="#888888", linewidth=0.5)
            axes.axvline(bound, color="#888888", linewidth=0.5)
        axes.set(xlabel="slot", ylabel=f"slot, layer {findings.profile.layer_ids[layer]}")
        axes.figure.colorbar(image, ax=axes, label="co-activation (cosine)")

    return _before_and_after(findings, draw, height=2.6)


def _most_changed_layer(findings: Findings) -> int:
    """The layer where the first plan brings most more of the co-activated pairs together."""
    plan = findings.plans[0]
    before = findings.before(plan)
    assert plan.together is not None
    assert before.together is not None
    return int(np.argmax(plan.together - before.together))


def _replicas(findings: Findings) -> "Figure | None":
    plans = [plan for plan in findings.plans if plan.plan.num_physical_experts > plan.plan.num_logical_experts]
    if not plans:
        return None
    figure, panels = _panels(len(plans), 1, height=2.0)
    for (axes,), plan in zip(panels, plans, strict=True):
        image = axes.imshow(_copies(plan.plan), aspect="auto", cmap="Blues", vmin=1, interpolation="nearest")
        axes.set(xlabel="expert", ylabel="MoE layer", title=plan.label)
        figure.colorbar(image, ax=axes, label="copies")
    return figure


def _copies(plan: PlacementPlan) -> NDArray[np.int64]:
    """int64 [L, E]: how many slots hold each expert."""
    copies: NDArray[np.int64] = plan.holds.sum(axis=1)
    return copies


def _capacity(findings: Findings) -> "Figure | None":
    if not all(placement.capacity for placement in findings.placements):
        return None
    figure, panels = _panels(len(findings.settings), 2, height=2.4)
    for row, (setting, placements) in zip(panels, findings.settings.items(), strict=True):
        for axes, level in zip(row, ("expert", "device"), strict=True):
            for placement in placements:
                bounds = [b for b in placement.capacity if (b.level, b.overflow) == (level, "drop")]
                lost = [100 * bound.mean.lost_pair_rate for bound in bounds]
                _line(axes, findings, placement, [bound.factor for bound in bounds], lost)
            axes.set(xlabel="capacity factor", ylabel="% of pairs dropped", ylim=(0, None))
            axes.set_title(f"{setting},\nbound per {level}")
        row[0].legend(frameon=False, fontsize=7)
    return figure


def _before_and_after(
    findings: Findings, draw: "Callable[[Axes, Placement, Sequence[Placement]], None]", height: float
) -> "Figure":
    """A row of two panels for each plan: the `linear` of its setting, and the plan; `draw` is told both."""
    figure, panels = _panels(len(findings.plans), 2, height=height)
    for row, plan in zip(panels, findings.plans, strict=True):
        pair = (findings.before(plan), plan)
        for axes, placement in zip(row, pair, strict=True):
            draw(axes, placement, pair)
            axes.set_title(placement.label.replace(" (", "\n("))
    return figure


def _panels(rows: int, columns: int, *, height: float) -> "tuple[Figure, list[list[Axes]]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _line(axes: "Axes", findings: Findings, placement: Placement, xs: Sequence[float], ys: Sequence[float]) -> None:
    if placement.result.baseline:
        colour, style = BASELINE_STYLES[placement.plan.method]
        axes.plot(xs, ys, color=colour, linestyle=style, linewidth=0.9, label=placement.short)
        return
    colour = PLAN_COLOURS[findings.place(placement)]
    axes.plot(xs, ys, color=colour, linewidth=1.6, label=placement.short)


PLOTS: "dict[str, Callable[[Findings], Figure | None]]" = {
    "remote-copies.png": _remote_copies,
    "load-per-rank.png": _load,
    "coactivation.png": _coactivation,
    "replicas.png": _replicas,
    "traffic.png": _traffic,
    "capacity.png": _capacity,
}
