"""The planned layout of a compiled checkpoint: every output file, tensor by tensor, as ranges of source bytes.

Planning ends here, before the first byte is written: `check_complete` proves that the layout uses every byte of the
source, none of them twice but where a plan asks for replicas.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from specmoe.checkpoint import Checkpoint
from specmoe.errors import CheckpointError
from specmoe.placement.reshard.manifest import ExpertFormat, Layout
from specmoe.placement.reshard.moe_model import ByteRange
from specmoe.safetensors_header import DTYPE_BITS


@dataclass(frozen=True, kw_only=True)
class OutputTensor:
    """One tensor to write: its bytes are those of `ranges`, one after the other.

    `content` has as many bytes, and takes their place, where values had to be computed from those of `ranges`. With
    `transposed`, its rows and columns, each range is a matrix to write transposed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    ranges: tuple[ByteRange, ...]
    content: bytes | None = None
    transposed: tuple[int, int] | None = None

    @cached_property
    def num_bytes(self) -> int:
        return sum(span.end - span.begin for span in self.ranges)


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One safetensors file to write, its tensors in the order of their bytes."""

    name: str
    tensors: tuple[OutputTensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes: the header's length and its JSON, padded with spaces to a multiple of 8."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt", **self.metadata}}
        position = 0
        for tensor in self.tensors:
            end = position + tensor.num_bytes
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def num_bytes(self) -> int:
        return len(self.header) + sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def ranges(self) -> Iterator[ByteRange]:
        """The source ranges in the order of the file's bytes."""
        return (span for tensor in self.tensors for span in tensor.ranges)


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """The safetensors files of a compiled checkpoint, and what the manifest says about them."""

    layout: Layout
    family: str
    expert_format: ExpertFormat
    expert_modules: tuple[str, ...]
    files: tuple[OutputFile, ...]

    @cached_property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def check_complete(self, checkpoint: Checkpoint, copies: Mapping[ByteRange, int]) -> None:
        """Raise `CheckpointError` unless every source byte is used once, or as often as `copies` says for its range.

        Also checks that every output tensor has as many bytes as its shape and dtype need.
        """
        used = Counter(span for file in self.files for span in file.ranges)
        for span, count in used.items():
            if count != copies.get(span, 1):
                raise CheckpointError(
                    f"the layout uses {span.tensor} {count} times, {copies.get(span, 1)} were expected"
                )
        ends = dict.fromkeys(checkpoint.tensors, 0)
        for span in sorted(used):
            if span.begin != ends[span.tensor]:
                raise CheckpointError(f"the layout leaves out or repeats bytes of {span.tensor}")
            ends[span.tensor] = span.end
        for name, end in ends.items():
            if end != checkpoint.tensors[name].num_bytes:
                raise CheckpointError(f"the layout leaves out bytes of {name}")
        for tensor in (tensor for file in self.files for tensor in file.tensors):
            _check_size(tensor)


def whole(checkpoint: Checkpoint, name: str, new_name: str | None = None) -> OutputTensor:
    """The source tensor `name`, unchanged, under `new_name`."""
    entry = checkpoint.tensors[name]
    ranges = (ByteRange(name, 0, entry.num_bytes),)
    return OutputTensor(name=new_name or name, dtype=entry.dtype, shape=entry.shape, ranges=ranges)


def _check_size(tensor: OutputTensor) -> None:
    bits = DTYPE_BITS[tensor.dtype]
    for size in tensor.shape:
        bits *= size
    if bits != tensor.num_bytes * 8:
        raise CheckpointError(f"the layout gives {tensor.name} {tensor.num_bytes} bytes, {bits / 8:g} were expected")
