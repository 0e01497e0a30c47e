"""The option `--phase`: take prefill or decode alone from a profile that keeps them apart."""

import click

# As in `specmoe.profiler.phase_counts`, which imports numpy: too slow for --help.
PHASES = ("all", "prefill", "decode")

phase_option = click.option(
    "--phase",
    type=click.Choice(PHASES),
    default="all",
    show_default=True,
    help="One phase alone, of a profile made with --generate.",
)
