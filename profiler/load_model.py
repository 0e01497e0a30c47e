"""Load a checkpoint's tokenizer and its model without the output head, which routing does not need."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specmoe.errors import CheckpointError, UsageError
from specmoe.profiler.experts_interface import find_experts
from specmoe.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")


def choose_device(device: str | torch.device | None) -> torch.device:
    """`device`, or the GPU where there is one; raises `UsageError` for one that does not exist."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"the device {device} cannot be used here: {str(error).splitlines()[0]}") from error


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in `folder`; raises `CheckpointError` where there is none that transformers can read."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that transformers can load: {_first_line(error)}") from error
    # Where the files are missing transformers may make up an empty tokenizer, for which every text is nothing.
    if not tokenizer("a 1", add_special_tokens=False)["input_ids"]:
        raise CheckpointError(f"{folder} has no tokenizer files (tokenizer.json); put the model's own there")
    return tokenizer


def refuse_unroutable(folder: Path) -> None:
    """Raise `CheckpointError` for a model without mixture-of-experts layers, before a weight is read."""
    from transformers import AutoModel

    with quiet_transformers(), torch.device("meta"):
        model: torch.nn.Module = AutoModel.from_config(_config(folder))  # type: ignore[no-untyped-call]
        find_experts(model, str(folder))


def load_base_model(folder: Path, device: torch.device, dtype: str) -> "PreTrainedModel":
    """The model in `folder`, ready to run on `device`; raises `CheckpointError` where a tensor lacks or does not fit.

    dtype: one of `DTYPES`; `auto` is the checkpoint's own.
    """
    from transformers import AutoModel

    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}, one of {', '.join(DTYPES)} was expected")
    config = _config(folder)
    with quiet_transformers():
        try:
            model, report = AutoModel.from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, **_quantization(config)
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise CheckpointError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    _check_report(folder, report)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _config(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModel

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} has a config that transformers cannot read: {_first_line(error)}") from error
    if type(config) not in AutoModel._model_mapping:
        raise CheckpointError(f"transformers has no model for {folder} (model_type {config.model_type!r})")
    return config


def _quantization(config: Any) -> dict[str, Any]:
    """Weights in MXFP4 are unpacked: their own kernels replace the layer whose routing is to be seen."""
    from transformers.utils.quantization_config import Mxfp4Config

    quantization = getattr(config, "quantization_config", None) or {}
    if isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4":
        return {"quantization_config": Mxfp4Config(dequantize=True)}
    return {}


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    """transformers fills a tensor that it does not find with random numbers and goes on; that must not happen."""
    for kind, problem in (("missing_keys", "lacks"), ("mismatched_keys", "has the wrong shape for")):
        if report[kind]:
            first = sorted(str(key) for key in report[kind])[0]
            raise CheckpointError(f"{folder} {problem} {len(report[kind])} tensors of the model, such as {first}")
    if report["error_msgs"]:
        raise CheckpointError(f"{folder} cannot be loaded: {report['error_msgs'][0]}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
