"""CPU seconds over what grows, both as logarithms: a panel for each sweep, with lines of slope 1 and 2."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

_COLUMNS = 4

Sweep = tuple[Sequence[int], Sequence[float]]


def plot_growth(sweeps: Mapping[str, Sweep], path: Path) -> None:
    """Write an image; sweeps: by title what grew, and the seconds of each."""
    rows, columns = math.ceil(len(sweeps) / _COLUMNS), min(_COLUMNS, len(sweeps))
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (title, (grown, seconds)) in zip(panels, sweeps.items(), strict=False):
        panel.loglog(grown, seconds, marker="o")
        for power, style in ((1, "--"), (2, ":")):
            panel.loglog(grown, [seconds[0] * (value / grown[0]) ** power for value in grown], style, color="grey")
        panel.set_title(title)
        panel.set_xticks(grown, [f"{value:,}" for value in grown])
        panel.minorticks_off()
        panel.set_ylabel("CPU seconds")
    for panel in panels[len(sweeps) :]:
        panel.remove()
    figure.savefig(path, metadata={"Date": None})
