"""Map the tensors of a safetensors file into memory: nothing is read before it is used, and processes share pages."""

from pathlib import Path

import torch

from specmoe.errors import ArtifactError
from specmoe.safetensors_header import TensorEntry, read_header

_TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, on the CPU; writing to one changes memory, never the file.

    Raises `CheckpointError` for a damaged header, `ArtifactError` for a dtype that this runtime has no use for.
    """
    entries = read_header(path)
    if not entries:
        return {}
    size = path.stat().st_size
    file_bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return {name: _view(path, name, entry, file_bytes) for name, entry in entries.items()}


def _view(path: Path, name: str, entry: TensorEntry, file_bytes: torch.Tensor) -> torch.Tensor:
    dtype = _TORCH_DTYPES.get(entry.dtype)
    if dtype is None:
        raise ArtifactError(f"{path}: tensor {name} is {entry.dtype}, which this runtime cannot use")
    own = file_bytes[entry.begin : entry.end]
    # A file of mixed dtypes may start a tensor where its elements are not aligned.
    if entry.begin % dtype.itemsize:
        own = own.clone()
    return own.view(dtype).view(entry.shape)
