"""`specmoe generate`: continue prompts with a compiled checkpoint, on one process or several under torchrun."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specmoe.atomic import atomic_file, refuse_existing
from specmoe.cli.prompt_bar import prompt_bar
from specmoe.errors import ArtifactError, SpecmoeError, UsageError

if TYPE_CHECKING:
    from specmoe.runtime.capacity import CapacityPolicy
    from specmoe.runtime.serve import Completion, OnProgress

# As in `specmoe.runtime`, which imports torch: too slow for --help.
DTYPES = ("auto", "float32", "bfloat16", "float16")
LEVELS = ("expert", "device")
OVERFLOWS = ("drop", "reroute")
DIVISIONS = ("plan", "even")


@click.command(name="generate")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, help="Text to continue; may be given several times.")
@click.option("--prompts-file", type=click.Path(path_type=Path), help="A text file with one prompt per line.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: this process's GPU where there is one]")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="auto", help="Compute in this type.  [default: the checkpoint's]"
)
@click.option(
    "--capacity",
    "factor",
    type=float,
    metavar="FACTOR",
    help="Lossy: bound each expert's load, while prompts are read, to FACTOR times the mean.",
)
@click.option("--level", type=click.Choice(LEVELS), help="What --capacity caps.  [default: expert]")
@click.option("--overflow", type=click.Choice(OVERFLOWS), help="What becomes of pairs beyond it.  [default: drop]")
@click.option(
    "--division",
    type=click.Choice(DIVISIONS),
    help="Each rank's part of it: as the plan expects its pairs, or the same for all.  [default: plan where it says]",
)
@click.option("--logits", type=click.Path(path_type=Path), help="Save the logits after each prompt (safetensors).")
@click.option("--force", is_flag=True, help="Replace an existing --logits file.")
@click.option("--json", "as_json", is_flag=True, help="Print texts and token ids as JSON.")
def command(
    out: Path,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    max_new_tokens: int,
    device: str | None,
    dtype: str,
    factor: float | None,
    level: str | None,
    overflow: str | None,
    division: str | None,
    logits: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Continue prompts with the compiled checkpoint OUT.

    Decoding is greedy: each new token is the most likely one. The answers are those of the unmodified model in the
    same type, unless --capacity is given, which is lossy.

    \b
    specmoe generate compiled/ --prompt "Once upon a time"
    torchrun --nproc-per-node 4 --no-python specmoe generate compiled/ --prompt "Once upon a time"
    """
    # Under torchrun every process runs this; what goes wrong on all of them is said once.
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        texts = [*prompts, *_read_prompts(prompts_file)]
        if not texts:
            raise UsageError("there is no prompt; give --prompt TEXT or --prompts-file FILE")
        _refuse_undecodable(texts)
        if logits is not None:
            refuse_existing(logits, force=force)
        with prompt_bar(visible=is_first and sys.stderr.isatty()) as show:
            capacity = _capacity(factor, level, overflow, division)
            completions, decoded = _run(out, texts, max_new_tokens, device, dtype, capacity, show)
    except SpecmoeError as error:
        if is_first or error.one_process_only:
            raise
        sys.exit(error.exit_code)
    if is_first:
        if logits is not None:
            _save_logits(logits, completions, force=force)
        _print(texts, completions, decoded, as_json=as_json)


def _capacity(
    factor: float | None, level: str | None, overflow: str | None, division: str | None
) -> "CapacityPolicy | None":
    if factor is None:
        if level or overflow or division:
            raise UsageError("--level, --overflow and --division describe a capacity; give --capacity FACTOR with them")
        return None
    from specmoe.runtime.capacity import CapacityPolicy

    chosen = {"level": level or "expert", "overflow": overflow or "drop", "division": division}
    return CapacityPolicy(factor, **chosen)  # type: ignore[arg-type]


def _run(
    out: Path,
    texts: Sequence[str],
    max_new_tokens: int,
    device: str | None,
    dtype: str,
    capacity: "CapacityPolicy | None",
    on_progress: "OnProgress",
) -> tuple[list["Completion"], list[str]]:
    import torch.distributed as dist
    from transformers.utils import logging

    from specmoe.pretrained import load_tokenizer
    from specmoe.runtime.load import load
    from specmoe.runtime.serve import serve_prompts

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model = load(out, device=device, dtype=dtype, capacity=capacity)
    tokenizer = load_tokenizer(out)
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    completions = serve_prompts(model, prompts, max_new_tokens, on_progress=on_progress)
    if dist.is_initialized():
        dist.destroy_process_group()
    return completions, [str(tokenizer.decode(item.token_ids, skip_special_tokens=True)) for item in completions]


def _refuse_undecodable(texts: Sequence[str]) -> None:
    """Raise where a prompt's bytes were no text in the terminal's encoding: tokenizers take none of what Python makes
    of such bytes."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"prompt {number} is not UTF-8 text; give it in UTF-8, or in a --prompts-file") from error


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read as a text file of prompts: {error}") from error


def _save_logits(path: Path, completions: Sequence["Completion"], *, force: bool) -> None:
    import torch
    from safetensors.torch import save

    tensor = torch.stack([completion.first_logits for completion in completions])
    with atomic_file(path, force=force) as temporary:
        temporary.write_bytes(save({"logits": tensor}))


def _print(texts: Sequence[str], completions: Sequence["Completion"], decoded: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        items: list[dict[str, Any]] = [
            {
                "prompt": prompt,
                "text": text,
                "prompt_token_ids": completion.prompt_token_ids,
                "token_ids": completion.token_ids,
                "process": completion.process,
            }
            for prompt, completion, text in zip(texts, completions, decoded, strict=True)
        ]
        click.echo(json.dumps({"completions": items}))
        return
    for number, (prompt, text) in enumerate(zip(texts, decoded, strict=True)):
        if number:
            click.echo()
        click.echo(click.style(prompt, bold=True) + text)
