"""Turn a corpus into requests: token ids of at most `max_length`, each as the model would be served it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import UsageError
from specmoe.profiler.corpus import Corpus, Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_PIECES = 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to run. `index` counts requests in corpus order; token_ids: int32 [length]."""

    index: int
    domain_id: int
    token_ids: NDArray[np.int32]


class RequestStream:
    """Requests in corpus order.

    A document longer than `max_length` tokens is cut into chunks, each a request of its own that starts with what the
    tokenizer puts at a text's start (a beginning-of-sequence token, or nothing). `max_tokens` cuts the corpus off.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", max_length: int, max_tokens: int | None
    ) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._prefix = _start_tokens(tokenizer)
        self._room = max_length - len(self._prefix)
        if self._room < 1:
            raise UsageError(f"max_length is {max_length}, more than {len(self._prefix)} (the start tokens) is needed")
        self.max_length = max_length
        self.num_characters = 0
        self.num_tokens = 0

    def __iter__(self) -> Iterator[Request]:
        for index, (domain_id, ids) in enumerate(self._chunks()):
            if self._max_tokens is not None and self.num_tokens + len(ids) >= self._max_tokens:
                ids = ids[: self._max_tokens - self.num_tokens]
                self.num_tokens += len(ids)
                yield Request(index=index, domain_id=domain_id, token_ids=np.asarray(ids, dtype=np.int32))
                return
            self.num_tokens += len(ids)
            yield Request(index=index, domain_id=domain_id, token_ids=np.asarray(ids, dtype=np.int32))

    def _chunks(self) -> Iterator[tuple[int, list[int]]]:
        rest: list[int] = []
        domain_id = 0
        for piece, ids in self._tokenized():
            if not piece.continues:
                if rest:
                    yield domain_id, self._prefix + rest
                rest, domain_id = [], piece.domain_id
            rest += ids
            full = len(rest) - len(rest) % self._room
            for start in range(0, full, self._room):
                yield domain_id, self._prefix + rest[start : start + self._room]
            rest = rest[full:]
        if rest:
            yield domain_id, self._prefix + rest

    def _tokenized(self) -> Iterator[tuple[Piece, list[int]]]:
        batch: list[Piece] = []
        for piece in self._corpus.pieces():
            batch.append(piece)
            if len(batch) == BATCH_PIECES or len(piece.text) > 2**16:
                yield from self._tokenize(batch)
                batch = []
        yield from self._tokenize(batch)

    def _tokenize(self, batch: list[Piece]) -> Iterator[tuple[Piece, list[int]]]:
        texts = [piece.text for piece in batch if piece.messages is None]
        plain = iter(self._encode(texts))
        for piece in batch:
            self.num_characters += len(piece.text)
            yield piece, next(plain) if piece.messages is None else self._apply_template(piece)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return encoded

    def _apply_template(self, piece: Piece) -> list[int]:
        from jinja2 import TemplateError

        messages: Any = list(piece.messages or ())
        try:
            ids: Any = self._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise UsageError(f"{piece.where}: the model's chat template refuses these messages: {error}") from error
        token_ids: list[int] = list(ids)
        # A template spells the start tokens out; the chunk puts them back.
        return token_ids[len(self._prefix) :] if token_ids[: len(self._prefix)] == self._prefix else token_ids


def _start_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the tokenizer puts before a text when asked for special tokens."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []
