"""Load a checkpoint's model without the output head, which routing does not need."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specmoe.device import usable_device
from specmoe.errors import CheckpointError, UsageError
from specmoe.pretrained import LOADING, check_loading_report, read_config, reading_with_transformers
from specmoe.profiler.experts_interface import find_experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("auto", "float32", "bfloat16", "float16")


def choose_device(device: str | torch.device | None) -> torch.device:
    """`device`, or the GPU where there is one; raises `UsageError` for one that does not exist."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device(device)


def refuse_unroutable(folder: Path) -> None:
    """Raise `CheckpointError` for a model without mixture-of-experts layers, before a weight is read."""
    from transformers import AutoModel

    config = _config(folder)
    with torch.device("meta"):
        with reading_with_transformers(f"{folder} has no model that transformers can build"):
            model: torch.nn.Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        find_experts(model, str(folder))


def load_base_model(folder: Path, device: torch.device, dtype: str) -> "PreTrainedModel":
    """The model in `folder`, ready to run on `device`; raises `CheckpointError` where a tensor lacks or does not fit.

    dtype: one of `DTYPES`; `auto` is the checkpoint's own.
    """
    from transformers import AutoModel

    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}, one of {', '.join(DTYPES)} was expected")
    config = _config(folder)
    with reading_with_transformers(f"{folder} cannot be loaded"):
        model, report = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, **LOADING, **_quantization(config)
        )
    check_loading_report(folder, report)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _config(folder: Path) -> Any:
    from transformers import AutoModel

    config = read_config(folder)
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
