"""The demo's text: requests of a few hundred tokens, each of one domain, in three splits that share no document."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from demo.domains import DOMAINS, Document

SPLITS = ("train", "profile", "heldout")
# The held-out split holds the documents whose digest, read as a fraction, lies below the first number, and so on.
HELDOUT_BELOW, PROFILE_BELOW = 0.15, 0.40
# So few from each document that a split holds many of them, and none decides what the split is like.
REQUESTS_PER_DOCUMENT = {"train": 40, "profile": 8, "heldout": 8}
CHARACTERS_PER_REQUEST = 600
SHORTEST_REQUEST = 80


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text as a user would send it, and the domain that it came from."""

    text: str
    domain: str


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """Characters per domain in each split, as many as there are."""

    train: int = 750_000
    profile: int = 80_000
    heldout: int = 40_000


Corpus = dict[str, list[Request]]


def build_corpus(quotas: Quotas, domains: Mapping[str, Callable[[], Iterator[Document]]] = DOMAINS) -> Corpus:
    """All requests of every split. The training split is in document order, the others are mixed as traffic is."""
    corpus: Corpus = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for domain, documents in domains.items():
        for split, texts in _fill(documents(), quotas, seen).items():
            corpus[split] += [Request(text=text, domain=domain) for text in texts]
    for split in ("profile", "heldout"):
        corpus[split].sort(key=lambda request: hashlib.sha256(request.text.encode()).digest())
    return corpus


def split_of(key: str) -> str:
    """The split of the document named `key`: always the same, whatever else there is."""
    fraction = int.from_bytes(hashlib.sha256(f"part of {key}".encode()).digest()[:4], "big") / 2**32
    return "heldout" if fraction < HELDOUT_BELOW else "profile" if fraction < PROFILE_BELOW else "train"


def write_requests(path: Path, requests: Iterable[Request]) -> None:
    """One JSON object a line, with `text` and `domain`, as `specmoe profile` reads it."""
    lines = (json.dumps(asdict(request), ensure_ascii=False) for request in requests)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _fill(documents: Iterator[Document], quotas: Quotas, seen: set[str]) -> dict[str, list[str]]:
    """Cut documents into requests until every split has its quota (or there are no more).

    A piece that was `seen` before is left out: documents repeat each other in places, and a held-out text must be new.
    """
    room = asdict(quotas)
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for document in documents:
        split = split_of(document.key)
        pieces = [piece for piece in cut(document.text) if piece not in seen]
        for piece in _spread(pieces, REQUESTS_PER_DOCUMENT[split]):
            if room[split] > 0:
                seen.add(piece)
                texts[split].append(piece)
                room[split] -= len(piece)
        if max(room.values()) <= 0:
            break
    return texts


def _spread(pieces: Sequence[str], at_most: int) -> list[str]:
    """As many pieces from all over the document, in order, each once."""
    step = max(1.0, len(pieces) / at_most)
    chosen = (pieces[int(index * step)] for index in range(min(at_most, len(pieces))))
    return list(dict.fromkeys(chosen))


def cut(text: str) -> Iterator[str]:
    """Pieces of about `CHARACTERS_PER_REQUEST`, cut at ends of lines (inside a line where it alone is longer)."""
    size = CHARACTERS_PER_REQUEST
    long_lines = (line[at : at + size] for line in text.splitlines(keepends=True) for at in range(0, len(line), size))
    piece = ""
    for line in chain(long_lines, [None]):
        if line is None or len(piece) + len(line) > size:
            if len(piece) >= SHORTEST_REQUEST:
                yield piece
            piece = ""
        piece += line or ""
