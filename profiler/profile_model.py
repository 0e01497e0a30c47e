"""Profile a model: run it over text and record which experts every token uses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specmoe.profiler.prepared_run import prepare_run
from specmoe.profiler.processes import joined_processes
from specmoe.profiler.profile_options import SAMPLE_TOKENS, ProfileOptions
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.run_profile import run_profile

if TYPE_CHECKING:
    import torch


def profile(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    device: "str | torch.device | None" = None,
    device_map: str | Mapping[str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    max_tokens: int | None = None,
    sample_tokens: int = SAMPLE_TOKENS,
    generate: int | None = None,
    weights: Sequence[float] = (),
    domain_column: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> RoutingProfile:
    """The routing of `model` (a checkpoint folder, or a name on the Hugging Face hub) over the text in `data`.

    data: text, jsonl and parquet files (see `corpus`); a domain each, or by the key `domain_column`. weights: each
    file's share of the tokens, in any unit; the run then ends with the first file that has nothing left. A document is
    a request; one longer than `max_length` tokens (default: 2048, or what the model can take) is cut into several.
    device: default a GPU where there is one. device_map: spread a model that is larger than one device, as in
    transformers (`auto`, or device by module path, `disk` among them, whose weights then lie in `offload_folder`).
    dtype: `auto` (the checkpoint's), `float32`, `bfloat16`, `float16`. batch_tokens: tokens per forward pass, padding
    included (default 16384 on a GPU, 4096 on a CPU). max_tokens: stop there, generated ones not counted.
    sample_tokens: how many tokens of whole requests to keep one by one; the counts are over all of them. generate: let
    the model continue each request by so many tokens, greedily, and keep their routing (`decode`) apart; requests are
    then prompts alone, without the answers in the data.

    Under torchrun each process runs its share of the batches, and each returns the same profile of the whole.

    Raises `CheckpointError` for a folder that is no checkpoint or a model without experts, `ArtifactError` for data
    that cannot be read or is empty, `UsageError` for a wrong argument.
    """
    options = ProfileOptions(
        device=device,
        device_map=device_map,
        offload_folder=offload_folder,
        dtype=dtype,
        max_length=max_length,
        batch_tokens=batch_tokens,
        max_tokens=max_tokens,
        sample_tokens=sample_tokens,
        generate=generate,
        weights=weights,
        domain_column=domain_column,
        seed=seed,
    )
    files = [data] if isinstance(data, str | Path) else data
    with joined_processes() as processes:
        prepared = prepare_run(model, [Path(file) for file in files], options, processes)
        run = run_profile(prepared, processes, share=True, progress=progress)
    assert run.profile is not None, "all processes share it"
    return run.profile
