"""A corpus of plain text for continued pretraining: files and folders of documents, and the part that is held out.

`.txt` and `.md` are text, decoded strictly; `.jsonl` and `.json` hold objects with the text under one field, or strings.
Knows documents; does not know tokenizers or models. No error quotes a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

from yaofang.data.records import BOM, json_rows
from yaofang.vocab.errors import InputError

PLAIN, JSON = (".txt", ".md"), (".jsonl", ".json")
Per = Literal["file", "blank_line", "line"]
_BREAKS: dict[Per, str] = {"blank_line": r"\n(?:[ \t]*\n)+", "line": r"\n"}


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is read from its start to its end; never blank."""

    id: str
    """File and line, or the file alone where it is one document."""
    text: str


@dataclass
class Corpus:
    """The documents in the order of the files (a folder's by name), and what was left out."""

    documents: list[Document] = field(default_factory=list)
    files: int = 0
    ignored: int = 0
    """Files of folders that are of another kind."""
    empty: int = 0
    """Documents without text."""
    skipped: list[InputError] = field(default_factory=list)
    """What `skip_bad` left out."""


@dataclass(frozen=True)
class Split:
    """Documents to train on and documents to measure on; no text is in both, and none is held out twice."""

    train: list[Document]
    held_out: list[Document]
    duplicates: int
    """Documents taken out of either because the same text is held out."""


def read_corpus(paths: Sequence[str | Path], *, per: Per = "file", text_field: str = "text", skip_bad: bool = False) -> Corpus:
    """Read files, and folders with all that is in them but hidden files, each file once. `per` says what of a plain text is
    one document.

    Raises InputError for bytes that are not UTF-8, a row without text under `text_field`, a file of another kind that is
    named itself, and where there is no document at all; with `skip_bad` only the last, the rest is listed in `skipped`.
    """
    corpus, read = Corpus(), set[Path]()
    for path in paths:
        for file in _files(Path(path), corpus):
            if (own := file.resolve()) in read:
                continue
            read.add(own)
            corpus.files += 1
            for found in _documents(file, per, text_field):
                _take(found, corpus, skip_bad)
    if not corpus.documents:
        if corpus.skipped:
            raise corpus.skipped[0]
        named = ", ".join(str(path) for path in paths)
        raise InputError(f"no document in {named}", way_out=f"Give files with text: {', '.join((*PLAIN, *JSON))}.")
    return corpus


def split_corpus(documents: Sequence[Document], held_out: float | Sequence[Document]) -> Split:
    """Take a share of the documents, or the texts of other documents, out of training.

    The share is of the different texts and at least one of them: those whose SHA-256 is smallest, so that neither the order
    of the files nor chance decides. Raises InputError where nothing is left to train on.
    """
    chosen = _share(documents, held_out) if isinstance(held_out, float) else list(held_out)
    texts = {document.text: document for document in reversed(chosen)}
    kept = list(reversed(texts.values()))
    train = [document for document in documents if document.text not in texts]
    gone = len(chosen) - len(kept) + len(documents) - len(train)
    if isinstance(held_out, float):
        gone -= len(chosen)
    if not train:
        raise InputError("every document is held out", field="data.held_out", way_out="Hold fewer of them out.")
    return Split(train, kept, gone)


def _share(documents: Sequence[Document], share: float) -> list[Document]:
    first = {document.text: document for document in reversed(documents)}
    ranked = sorted(first.values(), key=lambda document: sha256(document.text.encode()).digest())
    return ranked[: max(1, round(share * len(ranked)))]


def _files(path: Path, corpus: Corpus) -> Iterator[Path]:
    if path.is_file():
        if path.suffix.lower() not in (*PLAIN, *JSON):
            way_out = f"Give one of {', '.join((*PLAIN, *JSON))}."
            raise InputError(f"a file of kind {path.suffix or '(none)'} is not read", file=path, way_out=way_out)
        yield path
        return
    if not path.is_dir():
        raise InputError("there is no such file or folder", file=path, way_out="Check data.corpus.")
    for file in sorted(path.rglob("*")):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        if file.suffix.lower() in (*PLAIN, *JSON):
            yield file
        else:
            corpus.ignored += 1


def _take(found: Document | InputError, corpus: Corpus, skip_bad: bool) -> None:
    if isinstance(found, Document):
        if found.text:
            corpus.documents.append(found)
        else:
            corpus.empty += 1
    elif skip_bad:
        corpus.skipped.append(found)
    else:
        raise found


def _documents(file: Path, per: Per, text_field: str) -> Iterator[Document | InputError]:
    """The documents of a file, blank ones with an empty text; an InputError takes the place of one that cannot be read."""
    if not file.read_bytes().removeprefix(BOM.encode()).strip():
        yield Document(str(file), "")
    elif file.suffix.lower() in JSON:
        for line, value in json_rows(file):
            yield value if isinstance(value, InputError) else _row(value, file, line, text_field)
    else:
        yield from _plain(file, per)


def _plain(file: Path, per: Per) -> Iterator[Document | InputError]:
    data = file.read_bytes()
    try:
        text = data.decode("utf-8").removeprefix(BOM).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        way_out = "Save it as UTF-8, for instance with: iconv -f gb18030 -t utf-8"
        yield InputError("bytes that are not UTF-8", file=file, line=line, way_out=way_out)
        return
    if per == "file":
        yield Document(str(file), text.strip())
        return
    start, line = 0, 1
    for end, following in [*(found.span() for found in re.finditer(_BREAKS[per], text)), (len(text), len(text))]:
        if part := text[start:end].strip():
            yield Document(f"{file}:{line}", part)
        line += text.count("\n", start, following)
        start = following


def _row(value: object, file: Path, line: int, text_field: str) -> Document | InputError:
    text = value.get(text_field) if isinstance(value, dict) else value
    if text is None:
        problem, way_out = "is missing", "Name the field of the text with data.text_field."
    elif not isinstance(text, str):
        problem, way_out = "must be a string", "Give a text."
    else:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            problem, way_out = "text that is no valid Unicode", "Repair the text."
        else:
            return Document(f"{file}:{line}", text.replace("\r\n", "\n").strip())
    return InputError(problem, file=file, line=line, field=text_field, way_out=way_out)
