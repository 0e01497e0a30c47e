from pathlib import Path

from demo.reuse import Reuse, digest_of, digest_of_sources


def test_a_thing_is_reused_only_if_its_causes_and_outputs_are_the_same(tmp_path: Path) -> None:
    reuse, output = Reuse(folder=tmp_path / "notes"), tmp_path / "model"
    assert not reuse.has("model", "a", [output])
    reuse.remember("model", "a")
    assert not reuse.has("model", "a", [output])
    output.touch()
    assert reuse.has("model", "a", [output])
    assert not reuse.has("model", "b", [output])
    assert not reuse.has("other", "a", [output])


def test_a_broken_attempt_does_not_count(tmp_path: Path) -> None:
    reuse = Reuse(folder=tmp_path)
    reuse.remember("model", "a")
    reuse.forget("model")
    assert not reuse.has("model", "a", [])


def test_digests_follow_values_and_sources(tmp_path: Path) -> None:
    assert digest_of("a", 1) == digest_of("a", 1) != digest_of("a", 2)
    (tmp_path / "one.py").write_text("x = 1\n")
    before = digest_of_sources(tmp_path)
    (tmp_path / "notes.txt").write_text("not a source")
    assert digest_of_sources(tmp_path) == before
    (tmp_path / "one.py").write_text("x = 2\n")
    assert digest_of_sources(tmp_path) != before
