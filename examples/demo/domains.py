"""Six kinds of text that every Python installation holds, so that a model trained on them has domains to tell apart.

Each domain is a function that yields documents, in an order that is scattered but always the same. A document's `key`
decides its split (see `corpus`): texts that are cut from the same module share a key, so that no module is trained on
in one domain and held out in another.
"""

import ast
import dis
import hashlib
import io
import os
import re
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

SKIPPED_FOLDERS = {"site-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3"}
CODE_POINTS_PER_DOCUMENT = 128
SHORTEST_DOCSTRING = 40
NAMED_BY_RULE = ("CJK ", "HANGUL SYLLABLE", "TANGUT ", "KHITAN ", "NUSHU ")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text and the name of what it was cut from."""

    key: str
    text: str


def python_code() -> Iterator[Document]:
    """Standard library modules without their docstrings."""
    for key, source, tree in _modules():
        lines = source.splitlines()
        for node in _docstring_nodes(tree):
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
        yield Document(key=key, text="\n".join(line for line in lines if line.strip()))


def docstrings() -> Iterator[Document]:
    """The documentation strings of standard library modules: English prose."""
    for key, _, tree in _modules():
        texts = [text for node in _docstring_nodes(tree) if len(text := _text(node)) >= SHORTEST_DOCSTRING]
        yield Document(key=key, text="\n\n".join(texts))


def bytecode() -> Iterator[Document]:
    """Disassembly listings of standard library modules, compiled but never run."""
    for key, source, _ in _modules():
        listing = io.StringIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dis.dis(compile(source, key, "exec", dont_inherit=True), file=listing)
        lines = (" ".join(line.split()) for line in listing.getvalue().splitlines())
        # Memory addresses and the order of a set of strings differ from run to run.
        kept = (line for line in lines if line and " at 0x" not in line and "frozenset" not in line)
        yield Document(key=key, text="\n".join(kept))


def manual() -> Iterator[Document]:
    """The language reference that `help()` shows: long English reStructuredText."""
    for name in _scattered(topics):
        yield Document(key=f"topic {name}", text=topics[name])


def codec_tables() -> Iterator[Document]:
    """The character tables of the `encodings` package."""
    for name in _scattered(path.name for path in (_standard_library() / "encodings").glob("*.py")):
        source = (_standard_library() / "encodings" / name).read_text(encoding="utf-8")
        table = source.partition("### Decoding Table")[2]
        if table:
            yield Document(key=f"codec {name}", text=re.sub(" +", " ", table))


def unicode_names() -> Iterator[Document]:
    """Code points, the characters themselves and their names."""
    blocks = [f"{start:05X}" for start in range(0x20, 0x1_4000, CODE_POINTS_PER_DOCUMENT)]
    for block in _scattered(blocks):
        start = int(block, 16)
        characters = map(chr, range(start, start + CODE_POINTS_PER_DOCUMENT))
        names = {char: name for char in characters if (name := unicodedata.name(char, ""))}
        # Characters that are named by number or by rule would drown the rest.
        lines = [f"U+{ord(c):04X} {c} {n}" for c, n in names.items() if not n.startswith(NAMED_BY_RULE)]
        if lines:
            yield Document(key=f"code points {block}", text="\n".join(lines))


DOMAINS: dict[str, Callable[[], Iterator[Document]]] = {
    "python_code": python_code,
    "docstrings": docstrings,
    "bytecode": bytecode,
    "manual": manual,
    "codec_tables": codec_tables,
    "unicode_names": unicode_names,
}


def _standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _modules() -> Iterator[tuple[str, str, ast.Module]]:
    root = _standard_library()
    kept: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        relative = Path(folder).relative_to(root)
        kept += [(relative / file).as_posix() for file in files if file.endswith(".py")]
    for name in _scattered(kept):
        source = (root / name).read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        yield f"module {name}", source, tree


def _scattered(names: Iterable[str]) -> list[str]:
    """`names` in an order that has nothing to do with the alphabet, the same on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _docstring_nodes(tree: ast.Module) -> Iterator[ast.Expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and _text(first):
                yield first


def _text(node: ast.Expr) -> str:
    """The string that an expression statement consists of, its lines stripped; empty where it is not a string."""
    if not isinstance(node.value, ast.Constant) or not isinstance(node.value.value, str):
        return ""
    return "\n".join(line.strip() for line in node.value.value.strip().splitlines())
