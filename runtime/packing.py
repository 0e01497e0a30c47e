"""Pack a row's hidden state, slots and weights into bytes, so that one message carries all and any dtype travels."""

import torch

ALIGNMENT_BYTES = 16


def row_bytes(hidden_size: int, top_k: int, dtype: torch.dtype) -> int:
    """Bytes of one packed row: a float32 weight and an int32 slot per pair, then the hidden state, padded to 16."""
    payload = hidden_size * dtype.itemsize + 8 * top_k
    return -(-payload // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def pack_rows(hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """uint8 [N, row_bytes]; hidden: [N, H], slots: int32 [N, K], weights: float32 [N, K]."""
    num_rows, hidden_size = hidden.shape
    packed = hidden.new_empty((num_rows, row_bytes(hidden_size, slots.shape[1], hidden.dtype)), dtype=torch.uint8)
    start = 0
    # The hidden state last: whatever its size, every part starts aligned to its elements.
    for part in (weights, slots, hidden):
        part_bytes = part.shape[1] * part.dtype.itemsize
        packed[:, start : start + part_bytes] = part.view(torch.uint8)
        start += part_bytes
    packed[:, start:] = 0
    return packed


def unpack_rows(packed: torch.Tensor, dtype: torch.dtype, hidden_size: int, top_k: int) -> dict[str, torch.Tensor]:
    """What `pack_rows` packed, as contiguous `hidden`, `weights` and `slots`."""
    parts: dict[str, torch.Tensor] = {}
    start = 0
    for name, part_dtype, width in (
        ("weights", torch.float32, top_k),
        ("slots", torch.int32, top_k),
        ("hidden", dtype, hidden_size),
    ):
        end = start + width * part_dtype.itemsize
        parts[name] = packed[:, start:end].contiguous().view(part_dtype)
        start = end
    return parts
