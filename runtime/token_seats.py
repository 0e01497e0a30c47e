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
    device = wanted.device
    room = torch.tensor(_even(len(wanted), ep_size), device=device)
    order = torch.argsort(confidence.float(), descending=True, stable=True)
    in_line = wanted[order]
    has_wish = in_line != NO_RANK
    choices = torch.arange(ep_size, device=device)
    # How many tokens before this one, and itself, ask for the same rank.
    place = (in_line[:, None] == choices).cumsum(dim=0).gather(1, in_line.clamp(min=0)[:, None]).squeeze(1)
    gets_it = has_wish & (place <= room[in_line.clamp(min=0)])
    seats = torch.full_like(wanted, NO_RANK)
    seats[order[gets_it]] = in_line[gets_it]
    # The free seats in the order in which they fill: the rank with most room left, then the lowest number.
    left = room - torch.bincount(in_line[gets_it], minlength=ep_size)
    levels = torch.arange(int(room.max()), 0, -1, device=device)
    free_ranks = (left[None, :] >= levels[:, None]).nonzero()[:, 1]
    seats[seats == NO_RANK] = free_ranks
    return seats
