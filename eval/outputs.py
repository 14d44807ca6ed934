"""Read anyone's predictions: our submission, a table, JSON by 就诊标识, or the free text that another system wrote.

Names are linked to the vocabulary by `vocab.matching`, which never turns one drug into another; what does not link stays as it
was written and counts as unmatched. Knows the shapes of files; a text is read by `eval.answer_text`. Knows nothing of scores.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaofang.data.submission import read_submission
from yaofang.eval.answer_text import DRUG_KEYS, FreeText
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.matching import match
from yaofang.vocab.naming import names_in

Skip = Callable[[InputError], None]
"""Takes what is wrong with an entry that is then left out; where a function gets none, it raises the first error."""

IDS = ("ID", "id", "就诊标识")
TEXTS = ("prediction", "output", "answer", "text")
"""Keys of a list or a text, the surest first: beside a prediction, `text` may be the record and `answer` the gold."""
DRUGS = (*DRUG_KEYS, "出院带药", "出院带药列表", "label")
_EMPTY = ("nan", "none", "null", "[]")
"""Cells of tables that programs write for no list."""
_IS_PROSE = re.compile(r"[。!?！？]|建议|停[用服药止]|(?:^|[\s，,、；;])停|继续|出院诊断")
_SHAPES = 'Give [{"ID", "prediction"}], {ID: [names]}, lines of {"ID", "text"}, or a CSV with the columns ID and drug.'


@dataclass(frozen=True)
class Predictions:
    """Lists of names by 就诊标识, and how they were found."""

    lists: dict[str, list[str]]
    """Labels where a name links, else the name as it was written. Repeats stay, but not those of free text."""
    shape: str
    """`submission`, `csv`, `text` or `mapping`."""
    unmatched: int
    """Names that link to no label, each time that one is listed."""
    unmatched_names: tuple[str, ...]
    """The same, each once, sorted."""
    unparsed: int
    """Answers in which no list was found; they count as empty lists."""
    unparsed_ids: tuple[str, ...]


def read_predictions(path: str | Path, vocabulary: Vocabulary, skip: Skip | None = None) -> Predictions:
    """Read a file of predictions; its shape is told by its content, a table also by its suffix (.csv, .tsv).

    `skip` takes bad entries, which are left out; a submission with a bad entry is refused whole, as the competition does.
    Raises InputError with file, line and field for a file of no known shape, a bad entry or an ID given twice.
    """
    file = Path(path)
    reader = _Reader(file, vocabulary, skip)
    content = _decoded(file)
    if file.suffix.lower() in (".csv", ".tsv") or content.lstrip()[:1] not in ("[", "{"):
        return reader.done("csv", reader.table(content))
    try:
        value = json.loads(content)
    except ValueError as error:
        return reader.done("text", reader.lines(content, error))
    if isinstance(value, list) and not any(isinstance(e, dict) and _has_text(e) for e in value):
        return reader.done("submission", ((id_, 0, names) for id_, names in read_submission(file).items()))
    if isinstance(value, list):
        return reader.done("text", reader.entries(enumerate(value, 1)))
    if any(key in value for key in IDS):
        return reader.done("text", reader.entries([(1, value)]))
    return reader.done("mapping", ((str(id_), 0, names) for id_, names in value.items()))


def _decoded(file: Path) -> str:
    """The file's text: UTF-8 with or without a mark, else GB 18030, of which GBK is a part."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=file, way_out="Check the path.") from error
    if not data.strip():
        raise InputError("the file is empty", file=file, way_out=_SHAPES)
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError("neither UTF-8 nor GBK", file=file, way_out="Save the file as UTF-8.")


Found = Iterator[tuple[str, int, Any]]
"""就诊标识, line or entry (0: none to tell), and a list of names or a text."""


@dataclass
class _Reader:
    """Turns entries into lists, and counts."""

    file: Path
    vocabulary: Vocabulary
    skip: Skip | None

    def done(self, shape: str, found: Iterable[tuple[str, int, Any]]) -> Predictions:
        """All entries read: a text by `FreeText`, a list name by name."""
        free = FreeText(self.vocabulary)
        lists: dict[str, list[str]] = {}
        unparsed: list[str] = []
        for id_, place, value in found:
            if isinstance(value, list) and all(isinstance(name, str) for name in value):
                listed: list[str] | None = [free.link(name) or name.strip() for name in value if name.strip()]
            elif isinstance(value, str):
                listed = free.read(value)
            else:
                self._bad("not a list of names, nor a text", place, id_ if shape == "mapping" else "prediction")
                continue
            if id_ in lists and shape != "csv":
                self._bad(f"{id_} is given twice", place, "ID")
                continue
            unparsed += [] if listed is not None else [id_]
            lists.setdefault(id_, []).extend(listed or [])
        if not lists:
            raise InputError("there is no prediction in the file", file=self.file, way_out=_SHAPES)
        strangers = [name for names in lists.values() for name in names if name not in self.vocabulary]
        once = tuple(sorted(set(strangers)))
        return Predictions(lists, shape, len(strangers), once, len(unparsed), tuple(unparsed))

    def _bad(self, problem: str, place: int, name: str) -> None:
        error = InputError(problem, file=self.file, line=place or None, field=name, way_out=_SHAPES)
        if self.skip is None:
            raise error
        self.skip(error)

    def lines(self, content: str, whole: ValueError) -> Found:
        """The entries of a file with one JSON object a line. `whole` is why the file is not one JSON value."""
        texts = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
        if not texts[0][1].strip().endswith("}"):
            wrong = whole.lineno if isinstance(whole, json.JSONDecodeError) else None
            raise InputError(f"broken JSON ({whole})", file=self.file, line=wrong, way_out=_SHAPES) from whole
        values: list[tuple[int, Any]] = []
        for number, line in texts:
            try:
                values.append((number, json.loads(line)))
            except ValueError as error:
                self._bad(f"broken JSON ({error})", number, "-")
        yield from self.entries(values)

    def entries(self, values: Iterable[tuple[int, Any]]) -> Found:
        """(place, object) with an ID and a text or a list each."""
        for place, entry in values:
            id_ = _first(entry, IDS) if isinstance(entry, dict) else None
            if not isinstance(id_, str | int) or isinstance(id_, bool):
                self._bad("no 就诊标识", place, "ID")
            elif (value := _first(entry, TEXTS)) is None:
                self._bad(f"none of {', '.join(TEXTS)}", place, "text")
            else:
                yield str(id_), place, value

    def table(self, content: str) -> Found:
        """Rows of a table: one drug a row, or a list or a text a row."""
        head = content.partition("\n")[0]
        mark = max("\t,;", key=head.count) if any(mark in head for mark in "\t,;") else ","
        rows = csv.reader(io.StringIO(content, newline=""), delimiter=mark)
        columns = [cell.strip() for cell in next(rows)]
        key = next((columns.index(name) for name in IDS if name in columns), None)
        drug = next((columns.index(name) for name in (*DRUG_KEYS, *TEXTS, *DRUGS) if name in columns), None)
        if key is None or drug is None:
            problem = f"no column {' or '.join(IDS)}" if key is None else f"no column of drugs ({', '.join(DRUGS[:4])})"
            raise InputError(problem, file=self.file, line=1, field="ID" if key is None else "drug", way_out=_SHAPES)
        text = columns[drug] in TEXTS
        prose = text and columns[drug] != "prediction"
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) <= max(key, drug) or not cells[key].strip():
                short = len(cells) <= max(key, drug)
                problem = f"{len(cells)} cells, the header has {len(columns)}" if short else "no 就诊标识"
                self._bad(problem, rows.line_num, columns[key])
            else:
                cell = cells[drug].strip()
                is_text = not _is_array(cell) and (prose or (text and self._is_prose(cell)))
                yield cells[key].strip(), rows.line_num, cell if is_text else self._cell(cell)

    def _is_prose(self, cell: str) -> bool:
        return cell not in self.vocabulary and bool(_IS_PROSE.search(cell))

    def _cell(self, cell: str) -> list[str]:
        """The names of a cell: one label, an array as JSON, Python or NumPy write it, or names with separators."""
        if cell in self.vocabulary or not cell or cell.lower() in _EMPTY:
            return [cell] if cell in self.vocabulary else []
        if cell.startswith("["):
            try:
                value = ast.literal_eval(re.sub(r"(['\"])\s+(?=['\"])", r"\1, ", cell))
            except (ValueError, SyntaxError):
                value = None
            if isinstance(value, list):
                return [str(name) for name in value if name is not None]
            return self._cell(cell.strip("[] "))
        return [cell] if match(cell, self.vocabulary).drug else names_in(cell)


def _has_text(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of an array is no submission's: its prediction is a text, or stands beside one or under another key."""
    return isinstance(_first(entry, TEXTS), str) or any(key in entry for key in TEXTS[1:])


def _is_array(cell: str) -> bool:
    return cell.lower() in _EMPTY or (cell.startswith("[") and cell.endswith("]"))


def _first(entry: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """The value of the first key that the entry has."""
    return next((entry[key] for key in keys if key in entry), None)
