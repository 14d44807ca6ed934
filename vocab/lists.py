"""Reads any hospital's list of drug names, however it was saved: for linking, not for decoding.

A list to decode with must be clean (`drugs.load_vocabulary` refuses blanks, repeats and separators); a list to look at need not
be: blank lines are left out, repeats are kept, and UTF-8, UTF-16 and GB 18030 are read.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path

from yaofang.vocab.errors import InputError

COLUMNS = ("label", "药品名称", "药名", "名称", "通用名", "name", "drug")
"""Headings of the column of names in a table, the first that is there; else a table's first column is taken."""


def read_names(path: str | Path) -> list[str]:
    """The names of a `.json` array, a table (`.csv`, `.tsv`) or a text file with a name a line, in their order.

    Raises InputError for a file that cannot be read, holds no name, or is an array of something else.
    """
    file = Path(path)
    text = _text(file)
    if file.suffix == ".json":
        names = _of_json(file, text)
    elif file.suffix in (".csv", ".tsv"):
        names = _of_table(file, text)
    else:
        names = text.splitlines()
    found = [name.strip().encode("utf-8", "ignore").decode("utf-8") for name in names]
    found = [name for name in found if name]
    if not found:
        raise InputError("the list holds no name", file=file, way_out="Give a list with at least one drug name.")
    return found


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({type(error).__name__})", file=file, way_out="Check the path.") from None
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError("neither UTF-8 nor UTF-16 nor GB 18030 text", file=file, way_out="Save the list as UTF-8.")


def _of_json(file: Path, text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise InputError("broken JSON", file=file, line=line, way_out='Write one array: ["阿卡波糖", "二甲双胍"].') from None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError("not an array of names", file=file, way_out='Write one array: ["阿卡波糖", "二甲双胍"].')
    return list(value)


def _of_table(file: Path, text: str) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter="\t" if file.suffix == ".tsv" else ","))
    except csv.Error as error:
        raise InputError(f"not a table ({error})", file=file, way_out="Close every quotation mark.") from None
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        return []
    head = [cell.strip() for cell in rows[0]]
    column = next((head.index(name) for name in COLUMNS if name in head), None)
    body = rows if column is None else rows[1:]
    return [row[column or 0] for row in body if len(row) > (column or 0)]
