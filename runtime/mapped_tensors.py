"""Map the tensors of a safetensors file into memory: nothing is read before it is used, and processes share pages."""

import mmap
from functools import cached_property
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
    "F8_E8M0": torch.float8_e8m0fnu,
}


class MappedFile:
    """A safetensors file; its tensors share one mapping, and writing to one changes memory, never the file.

    Raises `CheckpointError` for a damaged header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = read_header(path)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, on the CPU; raises `ArtifactError` for a dtype that this runtime has no use for."""
        return {name: self._view(name, entry) for name, entry in self.entries.items()}

    def forget(self, name: str) -> None:
        """Take the pages of a tensor that has been copied off this process's memory; reading it maps them again."""
        entry = self.entries[name]
        begin = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        if begin < entry.end:
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, entry.end - begin)

    @cached_property
    def _mapping(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    @cached_property
    def _bytes(self) -> torch.Tensor:
        return torch.frombuffer(self._mapping, dtype=torch.uint8)

    def _view(self, name: str, entry: TensorEntry) -> torch.Tensor:
        dtype = _TORCH_DTYPES.get(entry.dtype)
        if dtype is None:
            raise ArtifactError(f"{self.path}: tensor {name} is {entry.dtype}, which this runtime cannot use")
        own = self._bytes[entry.begin : entry.end]
        # A file of mixed dtypes may start a tensor where its elements are not aligned.
        if entry.begin % dtype.itemsize:
            own = own.clone()
        return own.view(dtype).view(entry.shape)
