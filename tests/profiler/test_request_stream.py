"""How documents become requests."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from specmoe.errors import UsageError
from specmoe.profiler import corpus as corpus_module
from specmoe.profiler.corpus import Corpus
from specmoe.profiler.request_stream import RequestStream


@pytest.fixture
def requests_of(tmp_path, write_tokenizer):
    """`requests_of(texts by file name, max_length=..., bos=...)`: the token ids of every request, as text again."""

    def make(files: dict[str, str], max_length: int, max_tokens: int | None = None, *, bos: bool = False) -> list[str]:
        write_tokenizer(tmp_path, bos=bos)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        paths: list[Path] = []
        for name, text in files.items():
            paths.append(tmp_path / name)
            paths[-1].write_text(text)
        requests = list(RequestStream(Corpus(paths), tokenizer, max_length, max_tokens))
        assert [request.index for request in requests] == list(range(len(requests)))
        return [tokenizer.decode(request.token_ids) for request in requests]

    return make


def test_long_documents_are_cut_and_short_ones_stay_apart(requests_of) -> None:
    assert requests_of({"a.txt": "abcdefgh", "b.txt": "ij", "c.txt": "klm"}, 3) == ["abc", "def", "gh", "ij", "klm"]


def test_every_request_starts_with_the_start_token(requests_of) -> None:
    assert requests_of({"a.txt": "abcde"}, 3, bos=True) == ["<s>ab", "<s>cd", "<s>e"]


def test_pieces_of_a_long_file_are_one_document(requests_of, monkeypatch) -> None:
    monkeypatch.setattr(corpus_module, "PIECE_CHARACTERS", 2)
    assert requests_of({"a.txt": "ab\ncd\nefg", "b.txt": "xy"}, 4) == ["ab\nc", "d\nef", "g", "xy"]


def test_max_tokens_cuts_the_last_request(requests_of) -> None:
    assert requests_of({"a.txt": "abcdefgh"}, 3, 5) == ["abc", "de"]
    assert requests_of({"a.txt": "abcdefgh"}, 3, 6) == ["abc", "def"]


def test_max_length_must_leave_room_after_the_start_token(requests_of) -> None:
    with pytest.raises(UsageError, match="max_length is 1"):
        requests_of({"a.txt": "abc"}, 1, bos=True)
