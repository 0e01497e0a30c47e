"""`specmoe doctor`: what of this machine can be used."""

import json
import sys

import click


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print every finding as JSON.")
def command(as_json: bool) -> None:
    """Tell which devices, process-group backends and packages are usable here, and what each is needed for.

    Exits with 1 where something is missing that specmoe cannot work without.

    \b
    specmoe doctor
    specmoe doctor --json
    """
    from rich.table import Table

    from specmoe.cli.doctor.machine import machine_findings
    from specmoe.cli.doctor.packages import package_findings
    from specmoe.cli.terminal import console

    findings = [*machine_findings(), *package_findings()]
    missing = [finding.what for finding in findings if finding.status == "missing"]
    if as_json:
        click.echo(json.dumps({"ready": not missing, "findings": [finding.to_json() for finding in findings]}))
    else:
        table = Table("", "", "", "needed for")
        for finding in findings:
            table.add_row(finding.what, finding.status, finding.detail, finding.serves)
        screen = console()
        screen.print(table)
        screen.print(f"missing: {', '.join(missing)}" if missing else "specmoe can work here")
    if missing:
        sys.exit(1)
