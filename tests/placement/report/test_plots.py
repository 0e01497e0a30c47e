"""The plots for papers: which are written, and what is refused."""

import sys
from dataclasses import replace

import pytest

from specmoe.errors import OutputError, UsageError
from specmoe.placement.report import plots
from specmoe.placement.report.findings import gather
from specmoe.placement.report.plots import PLOTS, write_plots

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures: drawing them large takes seconds."""
    monkeypatch.setattr(plots, "DOTS_PER_INCH", 50)


def shown_pixels(path) -> int:
    """How many different colours the picture has."""
    from matplotlib.image import imread

    return len({tuple(pixel) for row in imread(path)[::3, ::3] for pixel in row.tolist()})


def test_every_plot_is_written(findings, tmp_path) -> None:
    written = write_plots(findings, tmp_path / "plots")
    assert [path.name for path in written] == list(PLOTS)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(PLOTS)
    for path in written:
        assert path.read_bytes().startswith(PNG_MAGIC)
        assert shown_pixels(path) > 10


def test_plots_without_content_are_left_out(folder, tmp_path) -> None:
    found = gather([folder / "tp.plan"], folder / "trace")
    bare = replace(found, profile=replace(found.profile, coactivation_counts=None))
    names = {path.name for path in write_plots(bare, tmp_path)}
    assert names == {"remote-copies.png", "load-per-rank.png", "traffic.png"}


def test_existing_plots_are_kept_unless_forced(findings, tmp_path) -> None:
    (tmp_path / "traffic.png").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_plots(findings, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["traffic.png"]
    write_plots(findings, tmp_path, force=True)
    assert (tmp_path / "traffic.png").read_bytes().startswith(PNG_MAGIC)


def test_without_matplotlib_one_sentence_says_what_to_install(findings, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="pip install"):
        write_plots(findings, tmp_path)


def test_a_file_in_the_folders_place_is_refused(findings, tmp_path) -> None:
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(OutputError, match="exists already"):
        write_plots(findings, tmp_path / "plots")
