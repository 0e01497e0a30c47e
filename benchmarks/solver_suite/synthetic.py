"""Synthetic routing with the structure that placement lives on, at any size.

A request has a domain and a topic of it; its tokens are drawn by Zipf's law, common words from all requests' list and
the others from the topic's. What a router sees of a token is the sum of what its id, its topic, its request and chance
say, turned from layer to layer; every layer scores its experts by directions of their own and a bias that skews loads.
So experts that serve the same ids or topics serve the same tokens, as in real models, and requests differ.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

_HIDDEN = 24
_DOMAINS = 8
_TOPICS = 48
_COMMON_WORDS = 2000
_MEAN_LENGTH = 300
# How much of what a router sees is the token's id, its domain, its topic, its request, and chance.
_SHARES = {"id": 0.7, "domain": 0.4, "topic": 0.5, "request": 0.3, "chance": 0.6}
_SKEW = 0.2


@dataclass(frozen=True, kw_only=True)
class TraceSize:
    """What a trace has of everything."""

    layers: int
    experts: int
    top_k: int
    tokens: int
    vocabulary: int


def synthetic_profile(size: TraceSize, *, model_seed: int = 0, text_seed: int = 0) -> RoutingProfile:
    """The profile of `size.tokens` tokens: the model's directions by `model_seed`, the requests by `text_seed`."""
    words = np.random.default_rng((model_seed, 1))
    text = np.random.default_rng((model_seed, 2, text_seed))
    lengths = _lengths(text, size.tokens)
    request = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    topic_of_request = text.integers(_TOPICS, size=len(lengths))
    token_ids = _draw_words(words, text, topic_of_request[request], size.vocabulary)
    parts = {
        "id": words.standard_normal((size.vocabulary, _HIDDEN), dtype=np.float32)[token_ids],
        "domain": words.standard_normal((_DOMAINS, _HIDDEN), dtype=np.float32)[topic_of_request[request] % _DOMAINS],
        "topic": words.standard_normal((_TOPICS, _HIDDEN), dtype=np.float32)[topic_of_request[request]],
        "request": text.standard_normal((len(lengths), _HIDDEN), dtype=np.float32)[request],
    }
    seen = np.zeros((size.tokens, _HIDDEN), dtype=np.float32)
    for name, part in parts.items():
        seen += np.float32(_SHARES[name]) * part
    expert_ids = np.stack([_route(words, text, seen, size) for _ in range(size.layers)], axis=1)
    counts = [np.bincount(expert_ids[:, layer].ravel(), minlength=size.experts) for layer in range(size.layers)]
    return RoutingProfile(
        layer_ids=np.arange(size.layers, dtype=np.int32),
        expert_counts=np.stack(counts).astype(np.int64),
        num_logical_experts=size.experts,
        top_k=size.top_k,
        num_tokens=size.tokens,
        vocab_size=size.vocabulary,
        sample=RoutingSample(
            expert_ids=expert_ids,
            token_ids=token_ids,
            request_ids=request,
            domain_ids=(topic_of_request[request] % _DOMAINS).astype(np.int16),
        ),
        source=f"synthetic routing {model_seed}, text {text_seed}",
    )


def _lengths(rng: np.random.Generator, tokens: int) -> NDArray[np.int64]:
    """int64 [Q], sum `tokens`: lengths of requests, log-normal."""
    drawn = np.ceil(rng.lognormal(np.log(_MEAN_LENGTH), 0.6, size=tokens // 100 + 1)).astype(np.int64)
    drawn = drawn[: int(np.searchsorted(np.cumsum(drawn), tokens)) + 1]
    drawn[-1] -= drawn.sum() - tokens
    return drawn


def _draw_words(
    words: np.random.Generator, text: np.random.Generator, topic: NDArray[np.int64], vocabulary: int
) -> NDArray[np.int32]:
    """int32 [T]: half of the tokens from the common words, half from each topic's own order of the vocabulary."""
    common = min(_COMMON_WORDS, vocabulary)
    order = words.permutation(vocabulary).astype(np.int32)
    shift = words.integers(vocabulary, size=_TOPICS)
    from_all = _zipf(text, len(topic), common)
    from_topic = (_zipf(text, len(topic), vocabulary) + shift[topic]) % vocabulary
    chosen: NDArray[np.int32] = order[np.where(text.random(len(topic)) < 0.5, from_all, from_topic)]
    return chosen


def _zipf(rng: np.random.Generator, size: int, limit: int) -> NDArray[np.int64]:
    """int64 [size] below `limit`: n with a chance of about 1 / (n + 3)."""
    drawn = np.exp(rng.random(size) * np.log((limit + 3) / 3)) * 3 - 3
    ranked: NDArray[np.int64] = np.minimum(drawn.astype(np.int64), limit - 1)
    return ranked


def _route(
    words: np.random.Generator, text: np.random.Generator, seen: NDArray[np.float32], size: TraceSize
) -> NDArray[np.unsignedinteger]:
    """uint8 | uint16 [T, K]: one layer's experts."""
    directions = words.standard_normal((_HIDDEN, size.experts), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    bias = np.float32(_SKEW) * words.standard_normal(size.experts, dtype=np.float32)
    chosen = np.empty((len(seen), size.top_k), dtype=np.uint8 if size.experts <= 256 else np.uint16)
    for start in range(0, len(seen), 8192):
        part = seen[start : start + 8192]
        chance = np.float32(_SHARES["chance"]) * text.standard_normal(part.shape, dtype=np.float32)
        _choose((part + chance) @ directions + bias, chosen[start : start + 8192])
    return chosen


@compiled
def _choose(score: NDArray[np.float32], chosen: NDArray[np.unsignedinteger]) -> None:
    """The `chosen` [T, K] experts of the highest `score` [T, E], the highest first."""
    top_k = chosen.shape[1]
    for t in range(len(score)):
        count = 0
        for expert in range(score.shape[1]):
            if count == top_k and score[t, expert] <= score[t, chosen[t, top_k - 1]]:
                continue
            position = min(count, top_k - 1)
            while position > 0 and score[t, chosen[t, position - 1]] < score[t, expert]:
                chosen[t, position] = chosen[t, position - 1]
                position -= 1
            chosen[t, position] = expert
            count = min(count + 1, top_k)
