"""Turn a corpus into requests: token ids of at most `max_length`, each as the model would be served it."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import truediv
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
    """One sequence to run. `index` counts requests in corpus order; token_ids: int32 [length], of which the last
    `num_generated` are the model's own.
    """

    index: int
    domain_id: int
    token_ids: NDArray[np.int32]
    num_generated: int = 0


class RequestStream:
    """Requests in corpus order or, with `weights`, from all files in turn so that each has its share of the tokens.

    A document longer than `max_length` tokens is cut into chunks, each a request of its own that starts with what the
    tokenizer puts at a text's start (a beginning-of-sequence token, or nothing). `max_tokens` cuts the corpus off.
    weights: one per file, in any unit; the corpus then ends with the first file that has nothing left. to_answer: a
    chat ends with what the template puts before an answer.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        max_tokens: int | None,
        *,
        weights: Sequence[float] = (),
        to_answer: bool = False,
    ) -> None:
        if weights and len(weights) != corpus.num_files:
            raise UsageError(f"there are {len(weights)} weights for {corpus.num_files} data files; give one for each")
        if not all(0 < weight < math.inf for weight in weights):
            raise UsageError(f"the weights are {list(weights)}, positive numbers were expected")
        self._weights = list(weights)
        self._to_answer = to_answer
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._prefix = _start_tokens(tokenizer)
        self._room = max_length - len(self._prefix)
        if self._room < 1:
            raise UsageError(f"max_length is {max_length}, more than {len(self._prefix)} (the start tokens) is needed")
        self.max_length = max_length
        self.num_tokens = 0
        # How far the tokenizer is in each file, which is ahead of the requests.
        self._tokenized_characters = [0] * corpus.num_files
        self._tokenized_tokens = [0] * corpus.num_files

    def __iter__(self) -> Iterator[Request]:
        for index, (domain_id, ids) in enumerate(self._mixed()):
            if self._max_tokens is not None and self.num_tokens + len(ids) >= self._max_tokens:
                ids = ids[: self._max_tokens - self.num_tokens]
                self.num_tokens += len(ids)
                yield Request(index=index, domain_id=domain_id, token_ids=np.asarray(ids, dtype=np.int32))
                return
            self.num_tokens += len(ids)
            yield Request(index=index, domain_id=domain_id, token_ids=np.asarray(ids, dtype=np.int32))

    def expected_tokens(self, characters_of_file: Sequence[int]) -> int:
        """About how many tokens the requests have in all, going by the part of each file tokenized so far."""
        of_file = [self._rate(number) * length for number, length in enumerate(characters_of_file)]
        expected = sum(of_file)
        if self._weights:  # the first file to end ends all of them
            expected = min(map(truediv, of_file, self._weights)) * sum(self._weights)
        return round(expected if self._max_tokens is None else min(expected, self._max_tokens))

    def _rate(self, number: int) -> float:
        """Tokens per character of file `number`, or of all files where none of it has been tokenized."""
        tokens, characters = self._tokenized_tokens, self._tokenized_characters
        if characters[number]:
            return tokens[number] / characters[number]
        return sum(tokens) / max(1, sum(characters))

    def _mixed(self) -> Iterator[tuple[int, list[int]]]:
        chunks = [self._chunks(number) for number in range(self._corpus.num_files)]
        if not self._weights:
            yield from itertools.chain.from_iterable(chunks)
            return
        filled = [0.0] * len(chunks)
        while True:
            emptiest = filled.index(min(filled))
            chunk = next(chunks[emptiest], None)
            if chunk is None:
                return
            filled[emptiest] += len(chunk[1]) / self._weights[emptiest]
            yield chunk

    def _chunks(self, number: int) -> Iterator[tuple[int, list[int]]]:
        rest: list[int] = []
        domain_id = 0
        for piece, ids in self._tokenized(number):
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

    def _tokenized(self, number: int) -> Iterator[tuple[Piece, list[int]]]:
        batch: list[Piece] = []
        for piece in self._corpus.pieces_of(number):
            batch.append(piece)
            if len(batch) == BATCH_PIECES or len(piece.text) > 2**16:
                yield from self._tokenize(batch, number)
                batch = []
        yield from self._tokenize(batch, number)

    def _tokenize(self, batch: list[Piece], number: int) -> Iterator[tuple[Piece, list[int]]]:
        texts = [piece.text for piece in batch if piece.messages is None]
        plain = iter(self._encode(texts))
        for piece in batch:
            ids = next(plain) if piece.messages is None else self._apply_template(piece)
            self._tokenized_characters[number] += len(piece.text)
            self._tokenized_tokens[number] += len(ids)
            yield piece, ids

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return encoded

    def _apply_template(self, piece: Piece) -> list[int]:
        from jinja2 import TemplateError

        messages: Any = list(piece.messages or ())
        try:
            ids: Any = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False, add_generation_prompt=self._to_answer
            )
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
