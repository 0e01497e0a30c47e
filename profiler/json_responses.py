"""Read an engine's JSON answers from a .json or .jsonl file, or from all such files of a folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specmoe.errors import ArtifactError

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def json_responses(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and place, JSON object) of every answer: objects, lists of objects, or one object a line."""
    for file in source_files(path, JSON_SUFFIXES):
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ArtifactError(
                f"{file} is not JSON text; the engine's answers (.json, .jsonl) were expected"
            ) from error
        for where, value in _values(file, text):
            for at, answer in enumerate(value if isinstance(value, list) else [value]):
                place = f"{where}[{at}]" if isinstance(value, list) else where
                if not isinstance(answer, dict):
                    raise ArtifactError(f"{place} is not a JSON object; a response of the engine was expected")
                yield place, answer


def source_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """`path`, or the files of the folder `path` with one of `suffixes`, by name; raises `ArtifactError` without any."""
    files = sorted(file for file in path.iterdir() if file.suffix in suffixes) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ArtifactError(f"{path} is no file and no folder with {', '.join(suffixes)} files in it")
    return files


def _values(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".json":
        yield str(file), _parse(str(file), text)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{file}:{number}", _parse(f"{file}:{number}", line)


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not JSON: {error}") from error
