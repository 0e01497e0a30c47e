"""Which positions of a batch hold tokens, and which only fill its rows up to one length."""

from typing import Any

import torch


class TokenPlaces:
    """Of the batch that runs; positions are numbered row by row."""

    def __init__(self) -> None:
        self._places: torch.Tensor | None = None
        self._num_positions = 0

    def begin_forward(self, is_token: torch.Tensor | None) -> None:
        """Note the batch that runs next; is_token: bool [B, S], None where all positions hold tokens."""
        self._places = None
        if is_token is not None:
            self._places = is_token.flatten().nonzero().squeeze(1)
            self._num_positions = is_token.numel()

    def among(self, num_rows: int) -> torch.Tensor | None:
        """int64 [n]: which of a layer's `num_rows` rows are tokens; None: all, as where the rows are no batch."""
        return self._places if num_rows == self._num_positions else None

    def only(self, values: torch.Tensor) -> torch.Tensor:
        """[n, ...]: the values of the tokens, of values given for every position."""
        places = self.among(values.shape[0])
        return values if places is None else values[places]

    def spread(self, values: torch.Tensor, num_rows: int) -> torch.Tensor:
        """[num_rows, ...]: the tokens' values in their places, and zeros where there is no token."""
        places = self.among(num_rows)
        if places is None:
            return values
        whole = values.new_zeros((num_rows, *values.shape[1:]))
        whole[places] = values
        return whole


def tokens_of_mask(mask: Any, num_requests: int, num_new: int, num_cached: int) -> torch.Tensor | None:
    """bool [B, S]: where an attention mask ([B, cached + S]) says that the S new positions hold tokens.

    None where all do, or the mask is of another shape: padding can then not be told from tokens.
    """
    if not isinstance(mask, torch.Tensor) or mask.shape != (num_requests, num_cached + num_new):
        return None
    is_token = mask[:, num_cached:] != 0
    return None if bool(is_token.all()) else is_token
