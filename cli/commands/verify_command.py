"""`specmoe verify`: prove a compiled checkpoint whole, and equivalent to its source."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from specmoe.placement.reshard.verify_report import VerifyReport


@click.command(name="verify")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--against", help="The checkpoint that OUT was compiled from: a folder, or a name on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print every check as JSON.")
def command(out: Path, against: str | None, as_json: bool) -> None:
    """Check every file, hash and slot of the compiled checkpoint OUT; exit with 1 if anything is wrong.

    With --against also that every byte comes from the right place in the source, and that the logits are equal. Logits
    that cannot be compared (quantized experts, too little memory) are reported as skipped.

    \b
    specmoe verify compiled/
    specmoe verify compiled/ --against MODEL
    """
    from specmoe.runtime.verify import verify

    report = verify(out, against, progress=sys.stderr.isatty())
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(report)
    if not report.passed:
        sys.exit(1)


def _print(report: "VerifyReport") -> None:
    from rich.table import Table

    from specmoe.cli.terminal import console

    table = Table("check", "result", "", title=f"{report.out} (layout {report.layout})", title_justify="left")
    for check in report.checks:
        if check.passed:
            table.add_row(check.name, "passed", check.proven)
        if check.result == "skipped":
            table.add_row(check.name, "SKIPPED", check.skipped)
        for problem in check.problems:
            table.add_row(check.name, "FAILED", problem)
    screen = console()
    screen.print(table)
    screen.print(report.summary)
