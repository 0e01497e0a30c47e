"""Replacing a folder in one step."""

from pathlib import Path

from specmoe import atomic_folder


def test_the_exchange_is_really_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert atomic_folder.put_in_place(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/b").exists()
    assert (tmp_path / "b/a").exists()
