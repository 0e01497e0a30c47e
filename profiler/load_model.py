"""Load a checkpoint's model: without the output head, which routing does not need, unless it is to generate."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specmoe.device import usable_device
from specmoe.errors import CheckpointError, UsageError
from specmoe.pretrained import LOADING, check_loading_report, read_config, reading_with_transformers
from specmoe.profiler.experts_interface import find_experts
from specmoe.profiler.profile_options import ProfileOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("auto", "float32", "bfloat16", "float16")


def choose_device(device: str | torch.device | None, local_process: int = 0) -> torch.device:
    """`device`, or a GPU where there is one; raises `UsageError` for one that does not exist.

    local_process: this process's number on its machine; each takes a GPU of its own while there are enough.
    """
    if device is not None:
        return usable_device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_process % torch.cuda.device_count())


def refuse_unroutable(folder: Path) -> None:
    """Raise `CheckpointError` for a model without mixture-of-experts layers, before a weight is read."""
    from transformers import AutoModel

    config = _config(folder)
    with torch.device("meta"):
        with reading_with_transformers(f"{folder} has no model that transformers can build"):
            model: torch.nn.Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        find_experts(model, str(folder))


def load_model(folder: Path, device: torch.device, options: ProfileOptions) -> "PreTrainedModel":
    """The model in `folder`, ready to run on `device`, or spread over devices where `options` has a `device_map`.

    Raises `CheckpointError` where a tensor lacks or does not fit, `UsageError` for a dtype other than `DTYPES` (`auto`
    is the checkpoint's own) and for a device map that cannot be followed.
    """
    from transformers import AutoModel

    if options.dtype not in DTYPES:
        raise UsageError(f"dtype is {options.dtype!r}, one of {', '.join(DTYPES)} was expected")
    config = _config(folder)
    generating = _generating_kind(config)
    if options.num_generated:
        if generating is None:
            raise CheckpointError(
                f"transformers has no model for {folder} that generates text; profile it without generate"
            )
        model, report = _load(generating, folder, config, options)
    else:
        model, report = _load(AutoModel, folder, config, options)
        # Some families' published names fit their whole model alone.
        if report["missing_keys"] and generating is not None:
            model, report = _load(generating, folder, config, options)
            model = model.base_model
    check_loading_report(folder, report)
    loaded: PreTrainedModel = (model if options.device_map is not None else model.to(device)).eval()
    return loaded


def input_device(model: "PreTrainedModel") -> torch.device:
    """Where `model` takes token ids: with a device map its first device, which holds the embeddings."""
    embeddings: torch.nn.Module = model.get_input_embeddings()
    weight = embeddings.weight
    assert isinstance(weight, torch.Tensor)
    # What is on the disk, or waits in host memory for its turn on a GPU, shows as meta.
    return torch.device("cpu") if weight.device.type == "meta" else weight.device


@contextmanager
def _quiet_accelerate() -> Iterator[None]:
    """Without accelerate's note that a device map does what it says."""
    logger = logging.getLogger("accelerate.big_modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _generating_kind(config: Any) -> Any:
    """The automatic class that has a model with an output head for `config`, None where none has."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kinds = (AutoModelForCausalLM, AutoModelForImageTextToText)
    return next((kind for kind in kinds if type(config) in kind._model_mapping), None)


def _load(kind: Any, folder: Path, config: Any, options: ProfileOptions) -> tuple[Any, dict[str, Any]]:
    """The model of that automatic class, and transformers' report on its tensors."""
    with reading_with_transformers(f"{folder} cannot be loaded"), _quiet_accelerate():
        model, report = kind.from_pretrained(
            folder, config=config, dtype=options.dtype, **LOADING, **_quantization(config), **_placing(options)
        )
    return model, report


def _placing(options: ProfileOptions) -> dict[str, Any]:
    if options.device_map is None:
        return {}
    if find_spec("accelerate") is None:
        raise UsageError("device_map needs accelerate; install it with: pip install 'specmoe[large]'")
    folder = options.offload_folder
    return {"device_map": options.device_map} | ({} if folder is None else {"offload_folder": str(folder)})


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
