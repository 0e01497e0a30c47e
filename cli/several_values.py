"""An option that takes several values, `--data a.txt b.txt`, which click alone does not have."""

from typing import Any

import click


class SeveralValues(click.Command):
    """A command whose options with `multiple=True` take every value up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeated = {name for option in self.params if _is_multiple(option) for name in option.opts}
        spread: list[str] = []
        current: str | None = None
        for argument in args:
            if argument.startswith("-") and len(argument) > 1:
                current = argument if argument in repeated else None
            elif current is not None and spread[-1] != current:
                spread.append(current)
            spread.append(argument)
        return super().parse_args(ctx, spread)


def _is_multiple(parameter: Any) -> bool:
    return isinstance(parameter, click.Option) and parameter.multiple
