"""What a running batch has cached: requests leave it and others join, each row aligned at its last token.

Rows of fewer tokens than the longest are filled in front, as a left-padded prompt is, and an attention mask hides it.
"""

from typing import Any

import torch


def has_rows_of_tokens(cache: Any) -> bool:
    """Whether all that `cache` keeps are keys and values by token, so that rows can be taken out and put in."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and not cache.offloading and all(type(layer) in plain for layer in cache.layers)


def keep_rows(cache: Any, rows: torch.Tensor, num_cached: int) -> None:
    """Keep these rows, and of each its last `num_cached` positions; rows: int64 [n], in their new order."""
    for layer in cache.layers:
        layer.keys = layer.keys[rows, :, -num_cached:]
        layer.values = layer.values[rows, :, -num_cached:]
        if layer.is_sliding:
            layer.cumulative_length = num_cached


def join_rows(cache: Any, joining: Any) -> None:
    """Put the rows of `joining` behind those of `cache`."""
    for layer, other in zip(cache.layers, joining.layers, strict=True):
        width = max(layer.keys.shape[2], other.keys.shape[2])
        layer.keys = torch.cat([_filled(layer.keys, width), _filled(other.keys, width)])
        layer.values = torch.cat([_filled(layer.values, width), _filled(other.values, width)])
        if layer.is_sliding:
            layer.cumulative_length = max(layer.cumulative_length, other.cumulative_length)


def _filled(states: torch.Tensor, width: int) -> torch.Tensor:
    """[B, heads, width, D]: zeros before the states of the last positions."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))
