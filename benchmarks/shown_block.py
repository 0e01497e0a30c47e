"""Put a recorded result where readers look: between `<!-- NAME:begin -->` and `<!-- NAME:end -->` of a document.

A block may be empty until its result is recorded.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def show(document: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of `name` in `document`, which must be there."""
    document.write_text(with_block(document.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def with_block(document: str, name: str, text: str) -> str:
    """The document's text with `text` between the marks of `name`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = document.split(begin, 1)
    return f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end, 1)[1]}"


def shown(document: str, name: str) -> str:
    """What stands between the marks of `name` in the document's text."""
    return document.split(f"<!-- {name}:begin -->", 1)[1].split(f"<!-- {name}:end -->", 1)[0].strip()
