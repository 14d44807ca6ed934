"""A report of many records on a disk: one page, or an index X.html with a folder X/ of one page a record.

    write_report(Path("report.html"), views, count=570, about={"模型": "tiny"})

Views are taken one at a time, so several thousand records need the memory of one. Everything is written under another name
and renamed when it is whole, the index last. A folder that this module has not made is never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from yaofang.inspection.page import Row, Shown, index_page, records_page
from yaofang.inspection.view import RecordView
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import check_place, whole_file

ON_ONE_PAGE = 50
"""Most records of a single page."""
TITLE = "用药依据检查"
MARK = ".yaofang-inspect"
"""A file in every folder that this module makes."""


def check_target(out: Path, count: int) -> None:
    """Raise InputError if a report of `count` records cannot be written to `out`: for verbs that work long before."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError("the report is a page", file=out, field="--out", way_out="Give a file that ends in .html.")
    check_place(out)
    folder = folder_of(out)
    if count > ON_ONE_PAGE and folder.exists() and not (folder / MARK).is_file():
        raise InputError(
            "there is a file or folder that no report has made",
            file=folder,
            field="--out",
            way_out="Give another name: the records' pages go to a folder beside the index.",
        )


def folder_of(out: Path) -> Path:
    """Where the pages of single records lie."""
    return out.with_suffix("")


def write_report(out: Path, views: Iterable[RecordView], *, count: int, about: Mapping[str, str]) -> list[Path]:
    """Write the report of `count` views and return its index or page, and its folder where there is one.

    A folder of an earlier, larger report of the same name is removed. Raises InputError as `check_target` does.
    """
    check_target(out, count)
    folder = folder_of(out)
    if count > ON_ONE_PAGE:
        with _whole_folder(folder) as beside:
            rows = list(_write_pages(beside, out, views, count, about))
        _write(out, index_page(f"{TITLE}：{len(rows)} 份病历", rows, about))
        return [out, folder]
    shown = [Shown(number, view) for number, view in enumerate(views, 1)]
    shown.sort(key=lambda one: 2 if one.view.jaccard is None else one.view.jaccard)
    _write(out, records_page(TITLE, shown, about))
    if (folder / MARK).is_file():
        shutil.rmtree(folder)
    return [out]


def _write_pages(beside: Path, out: Path, views: Iterable[RecordView], count: int, about: Mapping[str, str]) -> Iterator[Row]:
    folder, index = quote(folder_of(out).name), f"../{quote(out.name)}"
    for number, view in enumerate(views, 1):
        before = _page(number - 1) if number > 1 else ""
        after = _page(number + 1) if number < count else ""
        text = records_page(TITLE, [Shown(number, view)], about, index=index, before=before, after=after)
        (beside / _page(number)).write_text(text, encoding="utf-8", newline="\n")
        yield Row.of(view, number, f"{folder}/{_page(number)}")


def _page(number: int) -> str:
    """The name of a record's page. 就诊标识 may hold anything, so it is a number."""
    return f"{number:05d}.html"


def _write(out: Path, text: str) -> None:
    with whole_file(out) as handle:
        handle.write(text)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside its target, renamed when the block ends without an error; the old one goes only then."""
    beside, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    for left in (beside, old):  # of a run that was killed: it holds records
        if (left / MARK).is_file():
            shutil.rmtree(left)
    for there in (beside, old):
        if there.exists():
            way_out = "Move it, or give another name."
            raise InputError("there is a folder that no report has made", file=there, field="--out", way_out=way_out)
    beside.mkdir()
    try:
        (beside / MARK).touch()
        yield beside
        if folder.exists():
            folder.rename(old)
        try:
            beside.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
