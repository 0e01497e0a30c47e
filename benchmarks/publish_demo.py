"""Put a demo's result where readers look: `python publish_demo.py --work FOLDER` after a run in that folder.

`benchmarks/results/demo.json` and `demo.md` record it with versions, date and command; the README shows the table.
"""

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
PACKAGES = ("torch", "transformers", "numpy", "numba")


def with_shown(readme: str, result: str) -> str:
    """The README's text with `result` between its markers."""
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{result.strip()}\n{END}{rest.split(END, 1)[1]}"


def publish(work: Path) -> None:
    """Copy `work`'s result into `benchmarks/results/` and the README."""
    table = (work / "RESULT.md").read_text(encoding="utf-8")
    record = {
        "command": "make demo",
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "result": json.loads((work / "RESULT.json").read_text(encoding="utf-8")),
    }
    (RESULTS / "demo.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "demo.md").write_text(table, encoding="utf-8")
    README.write_text(with_shown(README.read_text(encoding="utf-8"), table), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="the demo's folder")
    publish(parser.parse_args().work)


if __name__ == "__main__":
    main()
