"""Text on the terminal: tables at its width, and nothing in a name or a file taken for an instruction to it."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_A_FILE = 160


def console() -> "Console":
    """What prints tables on stdout; square brackets and colons in a name are no markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_OF_A_FILE
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def printable(text: str) -> str:
    """`text` with what a file may have smuggled in for the terminal made visible; line ends stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
