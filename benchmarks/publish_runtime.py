"""Put runs of `runtime.py` where readers look: `python publish_runtime.py --work FOLDER` after a run in that folder.

With several folders each model's results are those of the last run that measured it.
`benchmarks/results/runtime.json` and `runtime.md` record it with versions, date and command; the README shows gains.
"""

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- runtime:begin -->", "<!-- runtime:end -->"
PACKAGES = ("torch", "transformers", "numpy")
sys.path.append(str(Path(__file__).parent / "runtime_suite"))

from tables import gains_table, to_markdown, verdict_lines  # noqa: E402 (the folder is no package)
from verdict import best_gains, judge  # noqa: E402


def shown(record: dict[str, Any]) -> str:
    """What the README says of a recorded run."""
    lines = [*gains_table(record["results"]), "", *verdict_lines(record["results"])]
    return "\n".join(lines)


def with_shown(readme: str, result: str) -> str:
    """The README's text with `result` between its markers."""
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{result.strip()}\n{END}{rest.split(END, 1)[1]}"


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of several runs."""
    last = {result["model"]: number for number, run in enumerate(runs) for result in run["results"]}
    used = [run for number, run in enumerate(runs) if number in last.values()]
    results = [
        result for number, run in enumerate(runs) for result in run["results"] if last[result["model"]] == number
    ]
    return {
        "command": "; ".join(run["command"] for run in used),
        "seconds": sum(run["seconds"] for run in used),
        "must_hold": judge(results),
        "gains": list(best_gains(results)),
        "results": results,
    }


def publish(folders: list[Path]) -> None:
    """Copy the runs' results into `benchmarks/results/` and the README."""
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        **merged([json.loads((work / "runtime.json").read_text(encoding="utf-8")) for work in folders]),
    }
    (RESULTS / "runtime.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "runtime.md").write_text(to_markdown(record["results"]), encoding="utf-8")
    README.write_text(with_shown(README.read_text(encoding="utf-8"), shown(record)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, nargs="+", metavar="FOLDER", help="the folders of the runs")
    publish(parser.parse_args().work)


if __name__ == "__main__":
    main()
