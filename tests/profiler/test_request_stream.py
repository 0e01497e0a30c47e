"""How documents become requests."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from specmoe.errors import UsageError
from specmoe.profiler import corpus as corpus_module
from specmoe.profiler.corpus import Corpus
from specmoe.profiler.request_stream import RequestStream


@pytest.fixture
def requests_of(tmp_path, write_tokenizer):
    """`requests_of(texts by file name, max_length=..., bos=...)`: the token ids of every request, as text again."""

    def make(
        files: dict[str, str], max_length: int, max_tokens: int | None = None, *, bos: bool = False, **options: Any
    ) -> list[str]:
        write_tokenizer(tmp_path, bos=bos)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        paths: list[Path] = []
        for name, text in files.items():
            paths.append(tmp_path / name)
            paths[-1].write_text(text)
        requests = list(RequestStream(Corpus(paths), tokenizer, max_length, max_tokens, **options))
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


def test_weights_give_each_file_its_share_of_the_tokens(requests_of) -> None:
    files = {"a.txt": "a" * 400, "b.txt": "b" * 400}
    found = requests_of(files, 5, weights=[3, 1])
    assert "".join(found[:8]).count("a") == 30
    # At any time both are within a request of their shares, up to the end of the first file.
    total = "".join(found)
    for end in range(5, len(total), 5):
        assert abs(total[:end].count("a") - 0.75 * end) <= 5
    assert total.count("a") == 400
    assert abs(total.count("b") - 400 / 3) <= 5


def test_weights_mix_before_max_tokens_cuts(requests_of) -> None:
    found = requests_of({"a.txt": "a" * 50, "b.txt": "b" * 50}, 4, 40, weights=[1, 1])
    assert "".join(found).count("b") == 20


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "there are 1 weights for 2 data files"),
        ([1, 0], r"the weights are \[1, 0\]"),
        ([1, float("inf")], "the weights are"),
        ([1, float("nan")], "the weights are"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message, requests_of) -> None:
    with pytest.raises(UsageError, match=message):
        requests_of({"a.txt": "a", "b.txt": "b"}, 5, weights=weights)


def test_a_prompt_ends_with_what_the_template_puts_before_an_answer(tmp_path, write_tokenizer) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    write_tokenizer(tmp_path, chat_template=template + "{% if add_generation_prompt %}me: {% endif %}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "you", "content": "hi"}]}\n')
    texts = []
    for to_answer in (False, True):
        stream = RequestStream(Corpus([tmp_path / "a.jsonl"]), tokenizer, 50, None, to_answer=to_answer)
        texts += [tokenizer.decode(request.token_ids) for request in stream]
    assert texts == ["you: hi;", "you: hi;me: "]


def test_the_expected_length_goes_by_what_was_tokenized(tmp_path, write_tokenizer) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "a.txt").write_text("a" * 1000)
    corpus = Corpus([tmp_path / "a.txt"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    stream = RequestStream(corpus, tokenizer, 10, None)
    next(iter(stream))
    assert stream.expected_tokens(corpus.check().characters_of_file) == 1000
    cut = RequestStream(corpus, tokenizer, 10, 300)
    next(iter(cut))
    assert cut.expected_tokens([1000]) == 300


@pytest.mark.parametrize(("weights", "expected"), [([1, 1], 600), ([3, 1], 400), ([1, 9], 1111), ([], 1300)])
def test_with_weights_the_expected_length_ends_with_the_first_file(
    weights, expected, tmp_path, write_tokenizer
) -> None:
    write_tokenizer(tmp_path)
    for name, length in (("a", 300), ("b", 1000)):
        (tmp_path / f"{name}.txt").write_text(name * length)
    corpus = Corpus([tmp_path / "a.txt", tmp_path / "b.txt"])
    stream = RequestStream(corpus, AutoTokenizer.from_pretrained(tmp_path), 10, None, weights=weights)
    next(iter(stream))
    assert stream.expected_tokens(corpus.check().characters_of_file) == expected
