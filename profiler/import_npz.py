"""Import an npz trace: `expert_ids` uint8 | uint16 [T, L, K] and `num_experts`, with what else is known.

Optional arrays: `token_ids`, `request_ids` int32 [T], `gate_weights` float16 [T, L, K], `domain_ids` int16 [T],
`layer_ids` int32 [L] (else 0, 1, ...), and the scalar `vocab_size` (else the largest token id plus one). Arrays of
other names are left alone.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.npz_reader import ArrayHeader, read_arrays, read_headers
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_trace import RoutingTrace, profile_of_trace

MAX_EXPERTS = 65_536


def import_npz(path: str | Path, *, sample_tokens: int | None = None, seed: int = 0) -> RoutingProfile:
    """The profile of the trace in `path`; all tokens as the sample, or requests drawn up to `sample_tokens` tokens.

    Raises `ArtifactError`, naming the file, where it is no npz file or an array has the wrong dtype, shape or values.
    """
    path = Path(path)
    try:
        headers = {name: header for name, header in read_headers(path).items() if name in _KNOWN}
        _check_headers(headers)
        return profile_of_trace(_trace(read_arrays(path, headers), path.name), sample_tokens=sample_tokens, seed=seed)
    except ArtifactError as error:
        message = str(error)
        raise ArtifactError(message if message.startswith(str(path)) else f"{path}: {message}") from error


_SCALARS = ("num_experts", "vocab_size")
_ARRAYS: dict[str, tuple[tuple[type[np.generic], ...], str]] = {
    "expert_ids": ((np.uint8, np.uint16), "TLK"),
    "gate_weights": ((np.float16,), "TLK"),
    "token_ids": ((np.int32,), "T"),
    "request_ids": ((np.int32,), "T"),
    "domain_ids": ((np.int16,), "T"),
    "layer_ids": ((np.int32,), "L"),
}
_KNOWN = {*_ARRAYS, *_SCALARS}


def _check_headers(headers: Mapping[str, ArrayHeader]) -> None:
    for required in ("expert_ids", "num_experts"):
        if required not in headers:
            raise ArtifactError(f"{required} is missing; a trace needs expert_ids [T, L, K] and the scalar num_experts")
    if len(headers["expert_ids"].shape) != 3:
        raise ArtifactError(f"expert_ids has shape {list(headers['expert_ids'].shape)}, [T, L, K] was expected")
    sizes = dict(zip("TLK", headers["expert_ids"].shape, strict=True))
    if 0 in (sizes["L"], sizes["K"]):
        raise ArtifactError(f"expert_ids has shape {list(sizes.values())}, at least one layer and expert was expected")
    for name, header in headers.items():
        dtypes, letters = _ARRAYS.get(name, ((), ""))
        expected = tuple(sizes[letter] for letter in letters)
        if name in _SCALARS:
            if header.shape not in ((), (1,)) or header.dtype.kind not in "iu":
                raise ArtifactError(f"{name} is {header.dtype} {list(header.shape)}, one whole number was expected")
        elif header.dtype not in [np.dtype(dtype) for dtype in dtypes]:
            names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
            raise ArtifactError(f"{name} is {header.dtype}, {names} was expected")
        elif header.shape != expected:
            raise ArtifactError(f"{name} has shape {list(header.shape)}, {list(expected)} was expected")


def _trace(arrays: Mapping[str, Array], file_name: str) -> RoutingTrace:
    num_experts = int(arrays["num_experts"].item())
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise ArtifactError(f"num_experts is {num_experts}, 1 to {MAX_EXPERTS} was expected")
    expert_ids, token_ids = arrays["expert_ids"], arrays.get("token_ids")
    vocab_size = int(arrays["vocab_size"].item()) if "vocab_size" in arrays else None
    if token_ids is not None and vocab_size is None:
        vocab_size = int(token_ids.max(initial=-1)) + 1
    return RoutingTrace(
        expert_ids=expert_ids,
        layer_ids=arrays.get("layer_ids", np.arange(expert_ids.shape[1], dtype=np.int32)),
        num_logical_experts=num_experts,
        gate_weights=arrays.get("gate_weights"),
        token_ids=token_ids,
        request_ids=arrays.get("request_ids"),
        domain_ids=arrays.get("domain_ids"),
        vocab_size=vocab_size,
        source=f"npz trace {file_name}",
    )
