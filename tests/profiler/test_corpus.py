"""What counts as a document, and which data is refused, by file and line."""

from pathlib import Path

import pytest

from specmoe.errors import ArtifactError, UsageError
from specmoe.profiler import corpus as corpus_module
from specmoe.profiler.corpus import Corpus


def pieces(path: Path, content: str | bytes) -> list[tuple[str, bool]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(piece.text, piece.continues) for piece in Corpus([path]).pieces()]


def test_a_text_file_is_one_document(tmp_path) -> None:
    assert pieces(tmp_path / "a.md", "one\ntwo\n") == [("one\ntwo\n", False)]
    assert pieces(tmp_path / "a.md", b"\xef\xbb\xbfmarked") == [("marked", False)]


def test_a_long_text_file_comes_in_pieces_that_end_with_lines(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(corpus_module, "PIECE_CHARACTERS", 4)
    assert pieces(tmp_path / "a.txt", "ab\ncd\nefghijklmn") == [
        ("ab\ncd\n", False),
        ("efghijkl", True),
        ("mn", True),
    ]


def test_jsonl_takes_text_prompts_and_chats(tmp_path) -> None:
    lines = '{"text": "a"}\n\n{"prompt": "b", "completion": "c"}\n{"prompt": "d"}\n{"text": ""}\n'
    assert pieces(tmp_path / "a.jsonl", lines) == [("a", False), ("bc", False), ("d", False)]
    chat = '{"messages": [{"role": "user", "content": "hi"}]}\n{"prompt": [{"role": "user", "content": "hi"}]}\n'
    (tmp_path / "b.jsonl").write_text(chat)
    found = list(Corpus([tmp_path / "b.jsonl"]).pieces())
    assert [piece.messages for piece in found] == [({"role": "user", "content": "hi"},)] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "a.jsonl:2 is not JSON"),
        ("[1]", "a.jsonl:2 is not a JSON object"),
        ('{"body": "x"}', r"a.jsonl:2 has only \['body'\]"),
        ('{"text": 5}', "a.jsonl:2 has a 'text' that is neither"),
        ('{"text": [{"role": "user"}]}', "a.jsonl:2 has a 'text' that is neither"),
        ('{"messages": "hi"}', "a.jsonl:2 has a 'messages' that is neither"),
        ('{"messages": [{"content": "hi"}]}', "a.jsonl:2 has a 'messages' that is neither"),
        ('{"prompt": "a", "completion": null}', "a.jsonl:2 has a 'prompt' that is neither"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(ArtifactError, match=message):
        Corpus([tmp_path / "a.jsonl"]).check()


def test_text_that_is_not_utf8_is_refused(tmp_path) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(b'{"text": "caf\xe9"}')
        with pytest.raises(ArtifactError, match=f"{name} is not UTF-8"):
            Corpus([tmp_path / name]).check()


def test_missing_and_empty_data_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="no data file"):
        Corpus([])
    with pytest.raises(UsageError, match="does not exist or is no file"):
        Corpus([tmp_path])
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ArtifactError, match="is empty"):
        Corpus([tmp_path / "a.jsonl"]).check()


def test_a_missing_domain_column_is_named(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ArtifactError, match=r"a\.jsonl:1 has no 'kind'"):
        Corpus([tmp_path / "a.jsonl"], domain_column="kind").check()
