"""The `specmoe` command: finds sub-commands by file name, turns errors into one sentence and an exit code."""

import io
import os
import sys
from difflib import get_close_matches
from importlib import import_module

import click

from specmoe.cli.terminal import printable
from specmoe.errors import SpecmoeError

COMMANDS = {
    "profile": "Run a Hugging Face MoE model over text and record its routing.",
    "import": "Read another engine's routing record.",
    "solve": "Compute a placement plan from a profile.",
    "evaluate": "Replay a trace under plans and baselines.",
    "report": "Write a page on what plans do to a trace.",
    "inspect": "Tell what a file or folder of specmoe's is.",
    "drift": "Tell how far routing has moved, and whether to solve anew.",
    "reshard": "Compile a checkpoint into a plan's layout.",
    "verify": "Prove a compiled checkpoint whole and equivalent.",
    "export": "Hand a plan to a serving engine.",
    "generate": "Generate text from a compiled checkpoint.",
    "doctor": "Tell what of this machine can be used.",
    "completion": "Print the completion script for a shell.",
}


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for, so that `--help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"specmoe.cli.commands.{cmd_name}_command").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = get_close_matches(args[0], COMMANDS, 1)
        if args[0] not in COMMANDS and near:
            ctx.fail(f"there is no command {args[0]!r}; did you mean {near[0]}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="specmoe")
def cli() -> None:
    """Place the experts of a mixture-of-experts model so that tokens travel less, and run it, losslessly.

    \b
    specmoe profile MODEL --data text.txt -o routing.profile
    specmoe solve routing.profile -o experts.plan --ep-size 4
    specmoe evaluate experts.plan --profile heldout.profile
    specmoe reshard MODEL experts.plan -o compiled/
    torchrun --nproc-per-node 4 --no-python specmoe generate compiled/ --prompt "Hello"
    """


def main() -> None:
    """Run the command line; the only place that prints errors and sets exit codes."""
    for stream in (sys.stdout, sys.stderr):
        # A name may hold letters that the terminal's encoding lacks, or bytes that are no text.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        cli(standalone_mode=False)
    except SpecmoeError as error:
        _fail(str(error), error.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; no output was written", 1)
    except MemoryError as error:
        _fail(f"there is not enough memory ({error or 'nothing is left'}); take a smaller input or a larger machine", 1)
    except OSError as error:
        _give_up_stdout()
        what = "the result cannot be printed" if error.filename is None else f"{error.filename} cannot be used"
        _fail(f"{what}: {error.strerror or error}; give another place", 1)
    if "TORCHELASTIC_RUN_ID" in os.environ and "torch.distributed" in sys.modules:
        _leave_at_once()


def _leave_at_once() -> None:
    """End a process of torchrun's without taking the interpreter down first.

    A thread of the process group may still let go of a tensor by then, for which it wants the interpreter's lock; where
    the interpreter is ending, that aborts the process, its work done and its output whole.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _give_up_stdout() -> None:
    """What could not be printed is not tried again at the interpreter's end, whose failure would be the exit code."""
    own = sys.__stdout__
    if own is not None and own is sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), own.fileno())


def _fail(message: str, exit_code: int) -> None:
    click.echo(f"specmoe: {printable(message)}", err=True)
    sys.exit(exit_code)
