"""Pack texts into sequences of equal length, each of one domain, and draw batches that hold every domain."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo.corpus import Request

Windows = dict[str, Tensor]


def pack(requests: Sequence[Request], tokenizer: PreTrainedTokenizerFast, sequence_tokens: int) -> Windows:
    """int64 [sequences, sequence_tokens] per domain: its texts one after another, each ended by the end-of-text token.

    What does not fill a last sequence is left out. Raises `ValueError` where a domain does not fill one.
    """
    streams: dict[str, list[int]] = {}
    token_ids = tokenizer([request.text for request in requests])["input_ids"]
    for request, ids in zip(requests, token_ids, strict=True):
        streams.setdefault(request.domain, []).extend([*ids, tokenizer.eos_token_id])
    for domain, stream in streams.items():
        if len(stream) < sequence_tokens:
            raise ValueError(f"domain {domain} has {len(stream)} tokens, at least {sequence_tokens} were expected")
    return {
        domain: torch.tensor(stream[: len(stream) // sequence_tokens * sequence_tokens]).view(-1, sequence_tokens)
        for domain, stream in streams.items()
    }


def draw_batches(windows: Windows, per_domain: int, seed: int) -> Iterator[Tensor]:
    """Batches int64 [domains * per_domain, sequence_tokens] without end.

    Every sequence of a domain is drawn once before one is drawn again.
    """
    generator = torch.Generator().manual_seed(seed)
    streams = [_endless(sequences, generator) for sequences in windows.values()]
    while True:
        yield torch.stack([next(stream) for stream in streams for _ in range(per_domain)])


def _endless(sequences: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from sequences[torch.randperm(len(sequences), generator=generator)]
