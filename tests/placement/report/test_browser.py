"""The page in a real browser: no complaints, no network, everything drawn, read by keyboard alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specmoe.placement.report.findings import gather
from specmoe.placement.report.page import write_page

pytestmark = pytest.mark.browser

# How many colours each canvas shows: a blank one has a single colour.
COLOURS = """[...document.querySelectorAll('.plot > canvas')].map(canvas => {
  const data = canvas.getContext('2d').getImageData(58, 20, canvas.width - 58, canvas.height - 20).data;
  return new Set(new Uint32Array(data.buffer)).size;
})"""


@pytest.fixture(scope="module")
def page(findings, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(findings, path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_every_figure_is_drawn_without_a_complaint(browser, page, width, scheme) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.complaints() == []
    assert min(browser.run(COLOURS)) > 1
    assert browser.run("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('canvas, svg'))")
    assert browser.run("document.querySelectorAll('.plot path.series').length") == 4 + 4 + 1
    assert browser.run("document.querySelectorAll('.plot rect').length") == 2 * 2


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_is_no_wider_than_the_screen(browser, page, width) -> None:
    browser.open(page, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_on_a_phone_copies_and_load_stand_side_by_side(browser, page) -> None:
    browser.open(page, width=390)
    columns = "[...document.querySelectorAll('#gain thead th')].filter(cell => cell.innerText === 'Load imbalance')"
    edges = browser.run(f"{columns}.map(cell => cell.getBoundingClientRect().right)")
    assert len(edges) >= 3
    assert max(edges) <= 390


def test_dark_is_dark_and_light_is_light(browser, page) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        colour = browser.run("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = max(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    assert shades["dark"] < 40 < 200 < shades["light"]


def test_names_from_files_are_inert(browser, folder, tmp_path) -> None:
    name = "<img src=x onerror=alert(1)><script>alert(2)"
    shutil.copy(folder / "dp.plan", tmp_path / name)
    write_page(gather([tmp_path / name], folder / "trace"), tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.complaints() == []
    assert browser.run("document.querySelectorAll('img, .notes b').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert name in browser.run("document.querySelector('.headline').textContent")
    assert name in browser.run("document.querySelector('[data-plot=\"layers\"] .legend').textContent")
    assert "random </script><b>routing" in browser.run("document.querySelector('.notes').textContent")


def test_the_layer_is_chosen_by_keyboard(browser, page, findings) -> None:
    browser.open(page)
    browser.run("document.getElementById('layer-choice').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.getElementById('layer-shown').textContent") == "2"
    browser.press("End")
    words = browser.run("document.getElementById('together').textContent")
    shares = [
        100 * float(placement.together[2]) for placement in (findings.before(findings.plans[0]), findings.plans[0])
    ]
    assert words.startswith("Layer 3:")
    assert all(f"{share:.1f} %" in words for share in shares)


def test_the_slots_shown_are_the_plans(browser, page, findings) -> None:
    browser.open(page)
    browser.run("document.getElementById('plan-choice').value = 2")
    browser.run("document.getElementById('plan-choice').dispatchEvent(new Event('change'))")
    rows = browser.run("[...document.querySelectorAll('#slots tbody tr')].map(row => row.innerText)")
    plan = findings.plans[2].plan
    for rank, row in enumerate(rows):
        held = sorted(plan.physical_to_logical[0, plan.rank_of_physical == rank].tolist())
        shown = [word for word in row.split("\t")[1].split() if not word.startswith("(")]
        assert [int(word) for word in shown] == held


def test_single_cells_are_read_by_keyboard(browser, page, findings) -> None:
    browser.open(page)
    browser.run("document.querySelector('[data-plot=\"load\"] canvas').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    load = findings.before(findings.plans[0]).detail.load[1, 0]
    words = browser.run("document.querySelector('[data-plot=\"load\"] .readout').textContent")
    assert words == f"layer 2, rank 0: {load:.3f} of the mean load"


def test_another_metric_and_setting_are_shown(browser, page) -> None:
    browser.open(page)
    before = browser.run("document.querySelector('[data-plot=\"layers\"] path.series').getAttribute('d')")
    browser.run("document.getElementById('metric-choice').value = 3")
    browser.run("document.getElementById('metric-choice').dispatchEvent(new Event('change', {bubbles: true}))")
    assert browser.run("document.querySelector('[data-plot=\"layers\"] path.series').getAttribute('d')") != before
    assert "heaviest" in browser.run("document.getElementById('metric-unit').textContent")
    browser.run("document.getElementById('layers-setting').value = 2")
    browser.run("document.getElementById('layers-setting').dispatchEvent(new Event('change', {bubbles: true}))")
    assert "nodes.plan" in browser.run("document.querySelector('[data-plot=\"layers\"] .legend').textContent")


def test_a_page_without_much_to_show_is_drawn(browser, findings, tmp_path) -> None:
    bare = replace(findings, drifts=(), profile=replace(findings.profile, coactivation_counts=None))
    write_page(bare, tmp_path / "bare.html")
    browser.open(tmp_path / "bare.html")
    assert browser.complaints() == []
    assert min(browser.run(COLOURS)) > 1


@pytest.mark.parametrize(
    ("sizes", "slots"),
    [
        ({"num_experts": 4, "num_layers": 1, "top_k": 1}, {"ranks_per_node": (1,)}),
        ({"num_experts": 8, "num_layers": 2, "top_k": 1}, {"ranks_per_node": (1, 1), "uneven": True}),
        ({"num_experts": 8, "num_layers": 1, "top_k": 7}, {"ranks_per_node": (2, 1), "extra_slots": (0, 2, 5)}),
        ({"num_experts": 16, "num_layers": 2, "top_k": 2}, {"ranks_per_node": (16,)}),
    ],
    ids=["one rank", "one expert a token", "uneven slots", "an expert a rank"],
)
def test_odd_sizes_are_drawn(browser, profile_of, random_plan, tmp_path, sizes, slots) -> None:
    profile_of(num_tokens=60, **sizes).save(tmp_path / "trace")
    shape = {"num_experts": sizes["num_experts"], "top_k": sizes["top_k"]}
    layers = tuple(range(1, sizes["num_layers"] + 1))
    random_plan(np.random.default_rng(0), layer_ids=layers, **shape, **slots).save(tmp_path / "plan")
    write_page(gather([tmp_path / "plan"], tmp_path / "trace", capacity=[1.0]), tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.complaints() == []
    lengths = "[...document.querySelectorAll('.plot path.series')].map(path => path.getTotalLength())"
    assert min(browser.run(lengths)) > 10
    assert "NaN" not in browser.run("document.body.outerHTML")
    assert "undefined" not in browser.run("document.querySelector('main').innerText")
