"""`specmoe inspect`: what a file is, in words and numbers."""

import json
from pathlib import Path
from typing import Any

import click

A_PATH: Any = click.Path(path_type=Path)


@click.command(name="inspect")
@click.argument("path", metavar="FILE_OR_FOLDER", type=A_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def command(path: Path, as_json: bool) -> None:
    """Tell what FILE_OR_FOLDER is: a profile, a plan, a compiled checkpoint or one of its rank files, a topology, an
    exported placement.

    Only headers, the sizes of domains and small JSON files are read, so it is quick whatever the size. It believes
    what a file says of itself: `specmoe verify` checks the contents of a compiled checkpoint.

    \b
    specmoe inspect experts.plan
    specmoe inspect compiled/
    specmoe inspect routing.profile --json
    """
    from specmoe.cli.inspection.inspect_path import inspect_path

    found = inspect_path(path)
    click.echo(json.dumps(found.to_json()) if as_json else found.to_text())
