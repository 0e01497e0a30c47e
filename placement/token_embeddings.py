"""A checkpoint's token embeddings, for how alike tokens are: centred, of unit length, of few dimensions.

Wide embeddings are projected by a fixed Gaussian matrix to 256 dimensions (Johnson and Lindenstrauss), which keeps a
cosine to within about 0.06. Of the checkpoint only this tensor is read, in parts, so memory is that of the result.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.checkpoint import Checkpoint, open_checkpoint
from specmoe.errors import CheckpointError
from specmoe.model_folder import model_folder
from specmoe.safetensors_header import TensorEntry

# How families end the name of the tensor with a row for every token id.
_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
_MOST_DIMENSIONS = 256
_PART_BYTES = 16 * 2**20
_STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True, kw_only=True)
class TokenEmbeddings:
    """rows: float32 [V, D], of unit length, or zeros where the checkpoint says nothing of a token."""

    rows: NDArray[np.float32] = field(repr=False)
    model_fingerprint: str | None = None

    @classmethod
    def of(cls, model: str | Path) -> "TokenEmbeddings":
        """Those of `model`, a checkpoint folder or a name on the hub; raises `CheckpointError` where it has none."""
        checkpoint = open_checkpoint(model_folder(model))
        rows = _projected(_embedding_of(checkpoint))
        return cls(rows=_alike_by_angle(rows), model_fingerprint=checkpoint.fingerprint)


def _embedding_of(checkpoint: Checkpoint) -> TensorEntry:
    """The embedding of the language model: of several the one with most rows, then the one that lies least deep."""
    found = {
        name: entry
        for name, entry in checkpoint.tensors.items()
        if name.endswith(_NAMES) and len(entry.shape) == 2 and min(entry.shape) > 0
    }
    if not found:
        raise CheckpointError(
            f"{checkpoint.path} has no token embedding under a name that is known here (…{_NAMES[0]}, for one); "
            "solve without the model"
        )
    name = min(found, key=lambda name: (-found[name].shape[0], name.count("."), name))
    if found[name].dtype not in _STORED:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} is {found[name].dtype}, one of {', '.join(_STORED)} was expected; "
            "solve without the model"
        )
    return found[name]


def _projected(entry: TensorEntry) -> NDArray[np.float32]:
    """float32 [V, D]: the tensor's rows in at most `_MOST_DIMENSIONS` dimensions."""
    num_rows, width = entry.shape
    turned = None
    if width > _MOST_DIMENSIONS:
        turned = np.random.default_rng(0).standard_normal((width, _MOST_DIMENSIONS), dtype=np.float32)
    rows = np.empty((num_rows, min(width, _MOST_DIMENSIONS)), dtype=np.float32)
    stored, at_once = _STORED[entry.dtype], max(1, _PART_BYTES // (4 * width))
    try:
        with entry.file.open("rb") as handle:
            handle.seek(entry.begin)
            for start in range(0, num_rows, at_once):
                part = rows[start : start + at_once]
                read = np.frombuffer(handle.read(len(part) * width * stored.itemsize), dtype=stored)
                values = _as_float32(read).reshape(len(part), width)
                values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.float32(0))
                part[:] = values if turned is None else values @ turned
    except OSError as error:
        raise CheckpointError(f"{entry.file} cannot be read: {error.strerror or error}") from error
    return rows


def _as_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """float32 of the same shape; uint16 are bfloat16, the upper halves of float32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def _alike_by_angle(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows about their mean, which all share and which says nothing, at unit length; rows of zeros stay zeros."""
    is_known = rows.any(axis=1)
    if is_known.any():
        rows[is_known] -= rows[is_known].mean(axis=0)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(length > 0, length, np.float32(1))
    return rows
