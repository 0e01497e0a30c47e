"""Read arrays from an npz file that nobody vouches for: headers first, no pickle, nothing allocated on trust."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from specmoe.artifact import Array
from specmoe.errors import ArtifactError

MAX_HEADER_BYTES = 10_000


@dataclass(frozen=True, kw_only=True)
class ArrayHeader:
    """What a member of an npz file says of itself, found to agree with the member's size."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    num_bytes: int


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """The header of every array in `path`, none of their data; raises `ArtifactError` where one is damaged."""
    with _opened(path) as archive:
        names = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
        return {name.removesuffix(".npy"): _header(archive, name) for name in names}


def read_arrays(path: Path, headers: Mapping[str, ArrayHeader]) -> dict[str, Array]:
    """The arrays named in `headers`, which must fit into this machine's memory."""
    num_bytes = sum(header.num_bytes for header in headers.values())
    if num_bytes > _memory_bytes():
        raise ArtifactError(f"{path} unpacks to {num_bytes / 2**30:.1f} GiB, more than this machine's memory; split it")
    with _opened(path) as archive:
        return {name: _array(archive, name + ".npy") for name in headers}


def parse_npy(content: bytes) -> Array:
    """The array in the bytes of an .npy file; raises `ValueError` where they are damaged or hold Python objects."""
    stream = io.BytesIO(content)
    shape, dtype = _parse_header(stream)
    if len(content) - stream.tell() != dtype.itemsize * math.prod(shape):
        raise ValueError(f"it declares {dtype} {list(shape)}, and holds {len(content) - stream.tell()} bytes")
    stream.seek(0)
    array: Array = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=MAX_HEADER_BYTES)
    return array


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file; an npz file was expected")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{path} cannot be read as an npz file: {error}") from error


def _header(archive: zipfile.ZipFile, name: str) -> ArrayHeader:
    with archive.open(name) as member:
        shape, dtype = _parse_header(member)
        num_bytes = dtype.itemsize * math.prod(shape)
        stored = archive.getinfo(name).file_size - member.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read; plain numbers were expected")
    if stored != num_bytes:
        raise ValueError(f"{name} declares shape {list(shape)} ({num_bytes} bytes) and holds {stored} bytes")
    return ArrayHeader(shape=shape, dtype=dtype, num_bytes=num_bytes)


def _parse_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    major, _ = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member, max_header_size=MAX_HEADER_BYTES)
    if any(size < 0 for size in shape):
        raise ValueError(f"the shape {list(shape)} has a negative size")
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(name) as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False, max_header_size=MAX_HEADER_BYTES)
    return array


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
