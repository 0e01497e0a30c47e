import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from demo import domains
from demo.corpus import CHARACTERS_PER_REQUEST, SPLITS, Quotas, build_corpus, cut, split_of, write_requests
from demo.domains import DOMAINS, Document

EXAMPLES = Path(__file__).parents[3] / "examples"
QUOTAS = Quotas(train=20_000, profile=6_000, heldout=4_000)


def numbered(word: str) -> Iterator[Document]:
    """Documents about a word, of a hundred different lines each."""
    for number in range(200):
        lines = [f"{word} document {number} line {line}" for line in range(100)]
        yield Document(key=f"{word} {number}", text="\n".join(lines))


def apples() -> Iterator[Document]:
    return numbered("apple")


def pears() -> Iterator[Document]:
    return numbered("pear")


def document_of(text: str) -> str:
    return " ".join(text.splitlines()[0].split()[0:3])


def test_no_document_is_in_two_splits() -> None:
    corpus = build_corpus(QUOTAS, {"apples": apples, "pears": pears})
    documents = {split: {document_of(request.text) for request in corpus[split]} for split in SPLITS}
    assert all(documents.values())
    assert not documents["train"] & documents["heldout"]
    assert not documents["train"] & documents["profile"]
    assert not documents["profile"] & documents["heldout"]


def test_every_split_has_its_share_of_every_domain() -> None:
    corpus = build_corpus(QUOTAS, {"apples": apples, "pears": pears})
    for split, quota in (("train", 20_000), ("profile", 6_000), ("heldout", 4_000)):
        for domain in ("apples", "pears"):
            size = sum(len(request.text) for request in corpus[split] if request.domain == domain)
            assert quota <= size < quota + CHARACTERS_PER_REQUEST


def test_a_text_that_stands_in_two_documents_is_taken_once() -> None:
    def twins() -> Iterator[Document]:
        for number in range(40):
            yield Document(key=str(number), text="the same words again\n" * 20)

    corpus = build_corpus(QUOTAS, {"twins": twins})
    assert sum(map(len, corpus.values())) == 1


def test_profile_and_heldout_requests_are_mixed_as_traffic_is() -> None:
    domains = [request.domain for request in build_corpus(QUOTAS, {"apples": apples, "pears": pears})["heldout"]]
    assert domains != sorted(domains)


def test_a_document_keeps_its_split_whatever_else_there_is() -> None:
    assert {split_of(f"module {number}") for number in range(50)} == set(SPLITS)
    assert split_of("module ast.py") == split_of("module ast.py")


@pytest.mark.parametrize("text", ["a line\n" * 500, "x" * 5000, "short\n" * 30 + "y" * 2000 + "\nend\n" * 30])
def test_cutting_loses_no_more_than_what_is_too_short(text: str) -> None:
    pieces = list(cut(text))
    assert all(80 <= len(piece) <= CHARACTERS_PER_REQUEST for piece in pieces)
    assert len(text) - sum(map(len, pieces)) < 2 * 80
    assert all(piece in text for piece in pieces)


def test_requests_are_written_as_one_json_object_a_line(tmp_path: Path) -> None:
    requests = build_corpus(QUOTAS, {"apples": apples})["heldout"]
    write_requests(tmp_path / "heldout.jsonl", requests)
    lines = (tmp_path / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": item.text, "domain": "apples"} for item in requests]


def test_a_listing_names_no_address_and_no_set(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def f(x):\n    return x in {'a', 'b'}\n"
    monkeypatch.setattr(domains, "_modules", lambda: [("module m.py", source, ast.parse(source))])
    (document,) = domains.bytecode()
    assert "RETURN_VALUE" in document.text
    assert "frozenset" not in document.text
    assert "0x" not in document.text


@pytest.mark.parametrize("domain", DOMAINS)
def test_this_python_has_every_domain(domain: str) -> None:
    documents = list(islice(DOMAINS[domain](), 12))
    assert len({document.key for document in documents}) == 12
    assert sum(len(document.text) for document in documents) > 1000


def test_the_text_is_the_same_in_every_process() -> None:
    program = "from itertools import islice; from demo.domains import DOMAINS; import hashlib; print(hashlib.sha256("
    program += "repr([list(islice(read(), 5)) for read in DOMAINS.values()]).encode()).hexdigest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); {program}"],
            env={"PYTHONHASHSEED": seed, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
