"""Capacity factors as the command line takes them: numbers between commas."""

from specmoe.errors import UsageError


def parse_factors(text: str | None) -> list[float]:
    """The numbers of `--capacity`; raises `UsageError` for anything else."""
    try:
        return [] if not text else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--capacity is {text!r}, numbers such as 1.0,1.5,2.0 were expected") from error
