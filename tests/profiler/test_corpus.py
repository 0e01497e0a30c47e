"""What counts as a document, and which data is refused, by file and line."""

import json
import sys
from pathlib import Path

import pytest

from specmoe.errors import ArtifactError, UsageError
from specmoe.profiler import corpus as corpus_module
from specmoe.profiler import parquet_rows as parquet_rows_module
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


def test_prompts_alone_leave_the_answers_out(tmp_path) -> None:
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
    rows = [
        {"text": "whole"},
        {"prompt": "b", "completion": "c"},
        {"messages": [user, answer, user, answer]},
        {"prompt": [user], "completion": [answer]},
        {"messages": [answer]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(Corpus([tmp_path / "a.jsonl"], prompts_only=True).pieces())
    assert [piece.text for piece in found[:2]] == ["whole", "b"]
    assert [piece.messages for piece in found[2:]] == [(user, answer, user), (user,)]


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_a_parquet_file_is_read_as_jsonl_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_rows_module, "BATCH_ROWS", 2)
    rows = [
        *({"text": letter, "kind": letter} for letter in "abcab"),
        {"prompt": "p", "completion": "c", "kind": "a"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "tool", "id": "7"}], "kind": "c"},
    ]
    columns = {key: None for row in rows for key in row}
    table = write_parquet(tmp_path / "a.parquet", [columns | row for row in rows])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet, jsonl = (Corpus([path], domain_column="kind") for path in (table, tmp_path / "a.jsonl"))
    assert parquet.check() == jsonl.check()
    assert parquet.domains == ["a", "b", "c"]
    assert [piece.messages for piece in parquet.pieces()] == [piece.messages for piece in jsonl.pieces()]


def test_a_parquet_file_that_does_not_fit_is_refused(tmp_path) -> None:
    table = write_parquet(tmp_path / "a.parquet", [{"body": "x"}])
    with pytest.raises(ArtifactError, match=r"has only the columns \['body'\]"):
        Corpus([table]).check()
    table = write_parquet(tmp_path / "b.parquet", [{"text": "x"}, {"text": None}])
    with pytest.raises(ArtifactError, match=r"b\.parquet row 1 has no 'kind'"):
        Corpus([table], domain_column="kind").check()
    with pytest.raises(ArtifactError, match=r"b\.parquet row 2 has only \[\]"):
        Corpus([table]).check()
    (tmp_path / "c.parquet").write_text("no parquet")
    with pytest.raises(ArtifactError, match=r"c\.parquet cannot be read as a parquet file"):
        Corpus([tmp_path / "c.parquet"]).check()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UsageError, match=r"a\.parquet needs pyarrow; install it with: pip install 'specmoe\[parquet\]'"
    ):
        Corpus([tmp_path / "a.parquet"]).check()


def test_the_digest_follows_text_and_domains(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "kind": "p"}\n{"text": "y", "kind": "q"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x", "kind": "p"}\n{"text": "y", "kind": "p"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "xy", "kind": "p"}\n')
    digests = [Corpus([tmp_path / name], domain_column="kind").check().digest for name in ("a.jsonl", "b.jsonl")]
    digests += [Corpus([tmp_path / name]).check().digest for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    assert digests[2] == digests[3] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "a.jsonl:2 is not JSON"),
        ('{"a": ' + "[" * 100_000, "a.jsonl:2 is not JSON"),
        ("1", "a.jsonl:2 is not a JSON object"),
        ('[{"text": "a"},', "a.jsonl:2 begins a JSON array; one object a line"),
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


def test_an_empty_file_is_refused_where_it_would_end_the_run(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n')
    corpus = Corpus([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert corpus.check().characters_of_file == (1, 0)
    with pytest.raises(ArtifactError, match=r"b\.jsonl is empty, and with weights"):
        corpus.check(each=True)


@pytest.mark.parametrize("line", ['{"text": "x"}', '{"text": "x", "kind": null}'])
def test_a_missing_domain_column_is_named(line: str, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ArtifactError, match=r"a\.jsonl:1 has no 'kind'"):
        Corpus([tmp_path / "a.jsonl"], domain_column="kind").check()
