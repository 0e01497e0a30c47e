"""Deal the tokens of a batch out to the ranks in equal slices, by a token table: the homes under `tp` attention."""

import torch

BATCH_TOKENS = 4096
NO_RANK = -1


def seat_tokens(wanted: torch.Tensor, confidence: torch.Tensor, ep_size: int) -> torch.Tensor:
    """int64 [T]: the rank of each token; wanted: int64 [T], the table's rank or -1; confidence: floating [T].

    Every 4,096 tokens are dealt out by themselves. Each rank takes an equal slice, the low ranks the extra tokens.
    Tokens with a wanted rank are seated first, by falling confidence, then in order, while that rank's slice has
    room; then all others, in order, on the rank with most room, then the lowest number.
    """
    batches = [slice(start, start + BATCH_TOKENS) for start in range(0, max(len(wanted), 1), BATCH_TOKENS)]
    return torch.cat([_seat_batch(wanted[batch], confidence[batch], ep_size) for batch in batches])


def slice_sizes(num_tokens: int, ep_size: int) -> list[int]:
    """How many of `num_tokens` tokens each rank takes in all."""
    whole, rest = divmod(num_tokens, BATCH_TOKENS)
    return [whole * size + last for size, last in zip(_even(BATCH_TOKENS, ep_size), _even(rest, ep_size), strict=True)]


def _even(num_tokens: int, ep_size: int) -> list[int]:
    return [num_tokens // ep_size + (rank < num_tokens % ep_size) for rank in range(ep_size)]


def _seat_batch(wanted: torch.Tensor, confidence: torch.Tensor, ep_size: int) -> torch.Tensor:
    """As `seat_tokens`, of one batch; nothing waits for the device."""
    sizes = _even(len(wanted), ep_size)
    choices = torch.arange(ep_size, device=wanted.device)
    room = _even_tensor(len(wanted), ep_size, choices)
    order = torch.argsort(confidence.float(), descending=True, stable=True)
    in_line = wanted[order]
    asks = in_line[:, None] == choices
    # How many tokens before this one, and itself, ask for the same rank.
    place = asks.cumsum(dim=0).gather(1, in_line.clamp(min=0)[:, None]).squeeze(1)
    gets_it = (in_line != NO_RANK) & (place <= room[in_line.clamp(min=0)])
    seats = torch.empty_like(wanted)
    seats[order] = torch.where(gets_it, in_line, NO_RANK)
    # The free seats in the order in which they fill: the rank with most room left, then the lowest number.
    left = room - (asks & gets_it[:, None]).sum(dim=0)
    levels = torch.arange(max(sizes), 0, -1, device=wanted.device)
    is_free = (left[None, :] >= levels[:, None]).flatten()
    number = torch.where(is_free, is_free.cumsum(dim=0) - 1, len(wanted))
    free_ranks = torch.empty(len(wanted) + 1, dtype=wanted.dtype, device=wanted.device)
    free_ranks[number] = choices.to(wanted.dtype).repeat(len(levels))
    is_unseated = seats == NO_RANK
    return torch.where(is_unseated, free_ranks[(is_unseated.cumsum(dim=0) - 1).clamp(min=0)], seats)


def _even_tensor(num_tokens: int, ep_size: int, ranks: torch.Tensor) -> torch.Tensor:
    """`_even` on the device of `ranks`, which counts from 0."""
    return num_tokens // ep_size + (ranks < num_tokens % ep_size).long()
