"""Put a demo's result where readers look: `python publish_demo.py --work FOLDER` after a run in that folder.

`benchmarks/results/demo.json` and `demo.md` record it with versions, date and command; the README shows the table.
"""

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from shown_block import ROOT, show

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PACKAGES = ("torch", "transformers", "numpy", "numba")


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
    show(README, "demo", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="the demo's folder")
    publish(parser.parse_args().work)


if __name__ == "__main__":
    main()
