"""Put a report's sections, numbers, style and script into one HTML text that needs nothing else."""

from base64 import b64encode
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from specmoe.atomic import atomic_file
from specmoe.placement.report.findings import Findings
from specmoe.placement.report.headline import headline
from specmoe.placement.report.payload import payload
from specmoe.placement.report.sections import sections
from specmoe.placement.shown_metrics import shown_metrics

# In this order: each uses what stands before it.
SCRIPTS = (
    "data.js",
    "dom.js",
    "colour.js",
    "heat_map.js",
    "line_chart.js",
    "bar_chart.js",
    "layer_view.js",
    "main.js",
)
FOLDER = files("specmoe.placement.report") / "page"


def page(findings: Findings) -> str:
    """The report as HTML. Names from files are escaped, and the page's policy lets no other script or style run."""
    several_nodes = any(placement.plan.topology.num_nodes > 1 for placement in findings.placements)
    metrics = shown_metrics(several_nodes=several_nodes)
    style, script = _read("style.css"), page_script()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_read("page.html")).render(
        title=f"Placement report: {', '.join(plan.label for plan in findings.plans)}",
        headline=headline(findings),
        policy=f"default-src 'none'; img-src data:; style-src {_allowed(style)}; script-src {_allowed(script)}",
        # Our own files, free of text from elsewhere.
        style=Markup(style),
        script=Markup(script),
        sections=sections(findings, metrics),
        metrics=metrics,
        plans=findings.plans,
        settings=list(findings.settings),
        numbers=payload(findings, metrics),
        version=version("specmoe"),
    )


def write_page(findings: Findings, path: Path, *, force: bool = False) -> None:
    """Write the report to `path`, whole or not at all."""
    with atomic_file(path, force=force) as temporary:
        # A file's name may hold bytes that are no text.
        temporary.write_text(page(findings), encoding="utf-8", errors="replace")


def page_script() -> str:
    """The page's script as it stands in the page, hidden from other scripts by a function of its own."""
    return '"use strict";\n(() => {\n' + "\n".join(_read(name) for name in SCRIPTS) + "})();\n"


def _allowed(text: str) -> str:
    """The source expression of a content security policy that allows exactly `text`."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
