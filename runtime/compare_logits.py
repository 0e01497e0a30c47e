"""Run the compiled and the unmodified model on the same tokens and compare their logits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specmoe.checkpoint import open_checkpoint
from specmoe.errors import SpecmoeError
from specmoe.placement.reshard.manifest import CompiledManifest
from specmoe.placement.reshard.verify_report import VerifyCheck
from specmoe.pretrained import (
    LOADING,
    UnknownModelError,
    check_loading_report,
    generating_class,
    read_config,
    reading_with_transformers,
)
from specmoe.runtime.load import load
from specmoe.safetensors_header import DTYPE_BITS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SHAPE = (4, 32)
SEED = 20_250_301
# Summing in another order costs about 1e-6; one wrong expert costs about 1.
MAX_RELATIVE_DIFFERENCE = 1e-4
# Room for the activations and for the one tensor that is being converted.
MEMORY_MARGIN = 1.25


def compare_logits(out: Path, source: Path) -> VerifyCheck:
    """One check, named "logits": passed when they agree within 1e-4 of the largest, skipped when they cannot be
    compared because the model is quantized, does not fit in memory or is unknown to the installed transformers."""
    manifest = CompiledManifest.load(out)
    if manifest.expert_format != "fused":
        return VerifyCheck(name="logits", skipped="not compared: the experts are quantized")
    needed, free = _float32_bytes(source) * MEMORY_MARGIN, _available_bytes()
    if needed > free:
        sizes = f"{needed / 2**30:.1f} GiB in float32, {free / 2**30:.1f} GiB are free"
        return VerifyCheck(name="logits", skipped=f"not compared: the model needs {sizes}")
    try:
        expected = _logits(_load_unmodified(source))
        got = _logits(_load_compiled(out, manifest))
    except UnknownModelError as error:
        return VerifyCheck(name="logits", skipped=f"not compared: {error}")
    except SpecmoeError as error:
        return VerifyCheck(name="logits", problems=(str(error),))
    return _compared(got, expected)


def _compared(got: torch.Tensor, expected: torch.Tensor) -> VerifyCheck:
    """The check of float32 logits [B, S, V]."""
    difference = float((got - expected).abs().max() / expected.abs().max())
    # Written so that NaN fails.
    if not difference <= MAX_RELATIVE_DIFFERENCE:
        problem = f"the logits differ from the unmodified model's by {difference:.1e} of the largest"
        return VerifyCheck(name="logits", proven="logits are the unmodified model's", problems=(problem,))
    same = torch.equal(got.argmax(dim=-1), expected.argmax(dim=-1))
    top = "the same best token everywhere" if same else "a tie decided differently somewhere"
    tokens = BATCH_SHAPE[0] * BATCH_SHAPE[1]
    return VerifyCheck(
        name="logits", proven=f"equal to the unmodified model's within {difference:.1e} on {tokens} tokens, {top}"
    )


def _load_compiled(out: Path, manifest: CompiledManifest) -> "PreTrainedModel":
    if manifest.layout == "hf":
        return _load_unmodified(out)
    # The hashes have just been verified.
    return load(out, device="cpu", dtype=torch.float32, verify_hashes=False)


def _load_unmodified(folder: Path) -> "PreTrainedModel":
    config = read_config(folder)
    model_class = generating_class(config)
    with reading_with_transformers(f"{folder} cannot be loaded"):
        # The declared type leaves out the pair that `LOADING` asks for.
        loaded: Any = model_class.from_pretrained(folder, config=config, dtype=torch.float32, **LOADING)
    model: PreTrainedModel = loaded[0]
    check_loading_report(folder, loaded[1])
    return model


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    """float32 [B, S, V] on fixed random tokens."""
    vocab_size = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocab_size, BATCH_SHAPE, generator=torch.Generator().manual_seed(SEED))
    logits: torch.Tensor = model(tokens).logits
    return logits


def _float32_bytes(source: Path) -> float:
    """Bytes of the checkpoint's tensors as float32; 8-bit and smaller ones count as four bytes an element too."""
    return sum(entry.num_bytes * 32 / DTYPE_BITS[entry.dtype] for entry in open_checkpoint(source).tensors.values())


def _available_bytes() -> float:
    """Memory that a new program may use, as the system estimates it."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return 0.0
