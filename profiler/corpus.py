"""Read the text to profile on: plain text, and JSON lines or parquet with `text`, `prompt`/`completion` or `messages`.

A plain text file is one document. A line of a .jsonl, .ndjson or .json file, or a row of a .parquet file, is one
document: `text`, or `prompt` followed by `completion`, or the chat `messages` through the model's template (`prompt`
and `completion` may be lists of messages too). Each file is a domain, or each value of `domain_column` is.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specmoe.errors import ArtifactError, UsageError
from specmoe.profiler.parquet_rows import parquet_rows

PIECE_CHARACTERS = 2**20
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
MAX_DOMAINS = 2**15 - 1

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A document or, of a long plain text, a part: `continues` says that it goes on where the last piece ended.

    `messages` stands in place of `text` for a chat. `where` names file and line.
    """

    text: str
    domain_id: int
    where: str
    continues: bool = False
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class CorpusSize:
    """How long each file of a corpus is, whether some document is a chat, which needs the model's template, and the
    corpus's SHA-256.
    """

    characters_of_file: tuple[int, ...]
    has_messages: bool
    digest: str


class Corpus:
    """Text files in order; read anew, and in bounded memory, by every `pieces()`.

    prompts_only: leave out the answers, which the model is to give itself: the `completion` of a `prompt`, and the
    assistant's messages at the end of a chat.
    """

    def __init__(self, files: Sequence[Path], *, domain_column: str | None = None, prompts_only: bool = False) -> None:
        if not files:
            raise UsageError("no data file was given; name at least one text, jsonl or parquet file")
        for file in files:
            if not file.is_file():
                raise UsageError(
                    f"the data file {file} does not exist or is no file; give a text, jsonl or parquet file"
                )
        self._files = list(files)
        self._domain_column = domain_column
        self._prompts_only = prompts_only
        self._domains: dict[str, int] = {}

    @property
    def num_files(self) -> int:
        return len(self._files)

    @property
    def domains(self) -> list[str]:
        """The domains' names by domain id, all of them once `check` has been through."""
        return list(self._domains)

    @property
    def names(self) -> str:
        """The files' names, for people."""
        return ", ".join(file.name for file in self._files[:3]) + (", ..." if len(self._files) > 3 else "")

    def check(self, *, each: bool = False) -> CorpusSize:
        """Read everything once, so that no bad line stops a long run; each: no file may be empty.

        Raises `ArtifactError` for text that is not UTF-8, a line that is not such a JSON object, or an empty corpus.
        """
        characters, has_messages = [0] * self.num_files, False
        state = hashlib.sha256()
        for number in range(self.num_files):
            for piece in self.pieces_of(number):
                characters[number] += len(piece.text)
                has_messages = has_messages or piece.messages is not None
                state.update(f"{len(piece.text)} {piece.domain_id} {piece.continues}\0{piece.text}".encode())
        if not any(characters):
            raise ArtifactError(f"the corpus ({self.names}) is empty; text to profile the model on was expected")
        if each and not all(characters):
            empty = self._files[characters.index(0)]
            raise ArtifactError(f"{empty} is empty, and with weights the first file to end ends the run; leave it out")
        return CorpusSize(characters_of_file=tuple(characters), has_messages=has_messages, digest=state.hexdigest())

    def pieces(self) -> Iterator[Piece]:
        """All documents in order, empty ones left out."""
        for number in range(self.num_files):
            yield from self.pieces_of(number)

    def pieces_of(self, number: int) -> Iterator[Piece]:
        """The documents of file `number` in order, empty ones left out."""
        file = self._files[number]
        suffix = file.suffix.lower()
        try:
            if suffix == ".parquet":
                yield from self._rows(file)
            else:
                yield from self._lines(file) if suffix in JSON_SUFFIXES else self._text(file)
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{file} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error

    def _text(self, file: Path) -> Iterator[Piece]:
        domain_id = self._domain_id(str(file))
        continues = False
        with file.open(encoding="utf-8-sig") as lines:
            # A piece ends with a line, where tokenizers cut anyway.
            while text := lines.read(PIECE_CHARACTERS):
                text += lines.readline(PIECE_CHARACTERS)
                yield Piece(text=text, domain_id=domain_id, where=str(file), continues=continues)
                continues = True

    def _lines(self, file: Path) -> Iterator[Piece]:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{file}:{number}"
                    piece = self._piece(file, where, _parse_line(line, where))
                    if piece.text:
                        yield piece

    def _rows(self, file: Path) -> Iterator[Piece]:
        wanted = [key for keys in _CONTENT_KEYS for key in keys]
        for number, row in enumerate(parquet_rows(file, wanted, self._domain_column), start=1):
            piece = self._piece(file, f"{file} row {number}", row)
            if piece.text:
                yield piece

    def _piece(self, file: Path, where: str, value: Mapping[str, Any]) -> Piece:
        domain = str(file)
        if self._domain_column is not None:
            if value.get(self._domain_column) is None:
                raise ArtifactError(f"{where} has no {self._domain_column!r}, the domain column that was asked for")
            domain = str(value[self._domain_column])
        content = _content(value, where)
        if self._prompts_only:
            content = _prompt_of(value, content)
        domain_id = self._domain_id(domain)
        if isinstance(content, str):
            return Piece(text=content, domain_id=domain_id, where=where)
        text = json.dumps(content) if content else ""
        return Piece(text=text, domain_id=domain_id, where=where, messages=content)

    def _domain_id(self, domain: str) -> int:
        if domain not in self._domains and len(self._domains) >= MAX_DOMAINS:
            raise UsageError(f"the corpus has more than {MAX_DOMAINS} domains; join the files into one jsonl file")
        return self._domains.setdefault(domain, len(self._domains))


def _parse_line(line: str, where: str) -> dict[str, Any]:
    if line.lstrip().startswith("["):
        raise ArtifactError(f"{where} begins a JSON array; one object a line was expected (jq -c '.[]' makes that)")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not JSON ({error}); one JSON object a line was expected") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{where} is not a JSON object; one with 'text' or 'messages' was expected")
    return value


def _content(value: Mapping[str, Any], where: str) -> str | tuple[Message, ...]:
    keys = next((keys for keys in _CONTENT_KEYS if keys[0] in value), None)
    if keys is None:
        raise ArtifactError(f"{where} has only {sorted(value)}; 'text', 'prompt' or 'messages' was expected")
    parts = [value[key] for key in keys if key in value]
    if keys[0] != "messages" and all(isinstance(part, str) for part in parts):
        return "".join(parts)
    if keys[0] != "text" and all(_is_chat(part) for part in parts):
        return tuple(message for part in parts for message in part)
    raise ArtifactError(f"{where} has a {keys[0]!r} that is neither text nor a list of messages with a 'role' each")


def _prompt_of(value: Mapping[str, Any], content: str | tuple[Message, ...]) -> str | tuple[Message, ...]:
    """`content` without the answers that it ends with."""
    if isinstance(content, str):
        return content if "prompt" not in value or "text" in value else str(value["prompt"])
    last = max((number for number, message in enumerate(content) if message["role"] != "assistant"), default=-1)
    return content[: last + 1]


_CONTENT_KEYS = (("text",), ("messages",), ("prompt", "completion"))


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(message, dict) and "role" in message for message in value)
    )
