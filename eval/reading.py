"""Read what an evaluation needs: answers, a gold of another shape, the details that predict wrote, a model's drug counts.

Knows the shapes of these files and nothing of scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaofang.data.recommendation import Recommendation
from yaofang.data.records import Record
from yaofang.data.submission import read_submission
from yaofang.eval.outputs import read_predictions
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

Skip = Callable[[InputError], None]
"""Takes what is wrong with an entry that is then left out; where a function gets none, it raises the first error."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Predicted lists by 就诊标识, and how they were read."""

    lists: dict[str, list[str]]
    shape: str
    """`submission`, `csv`, `text` or `mapping` (`outputs.Predictions`)."""
    unmatched: int
    """Names that link to no label, each time that one is listed."""
    unmatched_names: tuple[str, ...]
    unparsed: int
    """Answers in which no list was found; they are empty lists."""
    unparsed_ids: tuple[str, ...]
    links: bool
    """Names that are no label were linked to labels by name matching; else all were taken as they stand."""
    other_names: int
    """Of a submission: names that are no label and link to one, each time that one is listed."""

    def to_json(self) -> dict[str, Any]:
        """All but the lists."""
        return {
            "shape": self.shape,
            "entries": len(self.lists),
            "unmatched": self.unmatched,
            "unmatched_names": list(self.unmatched_names),
            "unparsed": self.unparsed,
            "unparsed_ids": list(self.unparsed_ids),
            "links": self.links,
            "other_names": self.other_names,
        }


def read_answers(path: str | Path, vocabulary: Vocabulary, *, link: bool = False, skip: Skip | None = None) -> Answers:
    """Predictions of any shape that `outputs.read_predictions` knows.

    The names of a submission are taken as they stand, as the competition scores them, unless `link` is set; those of any other
    shape are always linked to labels. Raises InputError for a file that cannot be read.
    """
    read = read_predictions(path, vocabulary, skip)
    is_submission = read.shape == "submission"
    written = read_submission(path) if is_submission else read.lists
    strangers = sum(name not in vocabulary for names in written.values() for name in names)
    links = link or not is_submission
    return Answers(
        lists=read.lists if links else written,
        shape=read.shape,
        unmatched=read.unmatched,
        unmatched_names=read.unmatched_names,
        unparsed=read.unparsed,
        unparsed_ids=read.unparsed_ids,
        links=links,
        other_names=strangers - read.unmatched,
    )


def read_gold(path: str | Path, skip: Skip | None = None) -> dict[str, list[str]]:
    """A gold file of another shape: one JSON object {就诊标识: [names]}. Raises InputError for any other shape."""
    file = Path(path)
    way_out = "Write one JSON object: {就诊标识: [drug names]}."
    try:
        value = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON ({error.msg})", file=file, line=error.lineno, way_out=way_out) from error
    if not isinstance(value, dict) or not value:
        raise InputError("not a JSON object with entries", file=file, way_out=way_out)
    good = {id_: [name.strip() for name in names] for id_, names in value.items() if _is_names(names)}
    for id_ in (id_ for id_ in value if id_ not in good):
        _leave_out(InputError("not a list of names", file=file, field=id_, way_out=way_out), skip)
    return good


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value)


def _leave_out(error: InputError, skip: Skip | None) -> None:
    if skip is None:
        raise error
    skip(error)


def gold_of(
    records: Sequence[Record], gold: Mapping[str, list[str]] | None, skip: Skip | None = None
) -> dict[str, Sequence[str]]:
    """The gold of these records: their own drugs, or those of a gold file, which must hold exactly these IDs.

    With `skip`, visits that only one of the two holds are left out.
    """
    if gold is None:
        return {record.id: record.drugs for record in records}
    known = {record.id for record in records}
    for problem, ids in (("records that the gold file lacks", known - set(gold)), ("gold without record", set(gold) - known)):
        if ids:
            shown = ", ".join(sorted(ids)[:5])
            way_out = "Give records and gold of the same visits."
            _leave_out(InputError(f"{problem}: {len(ids)} ({shown})", field="就诊标识", way_out=way_out), skip)
    return {record.id: gold[record.id] for record in records if record.id in gold}


def read_details(path: str | Path, skip: Skip | None = None) -> dict[str, Recommendation]:
    """The Recommendations that predict wrote with --details, by 就诊标识. Raises InputError with the first bad line."""
    file = Path(path)
    found: dict[str, Recommendation] = {}
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            one = _recommendation(line, file, number)
            if one.id in found:
                raise InputError(f"{one.id} occurs twice", file=file, line=number, field="id")
        except InputError as error:
            _leave_out(error, skip)
        else:
            found[one.id] = one
    if not found:
        raise InputError(
            "there is no recommendation in the file", file=file, way_out="Give a file that predict wrote with --details."
        )
    return found


def _recommendation(line: str, file: Path, number: int) -> Recommendation:
    try:
        return Recommendation.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        way_out = "Give a file that predict wrote with --details."
        raise InputError("not a recommendation", file=file, line=number, way_out=way_out) from error


def read_drug_counts(path: str | Path) -> dict[str, int]:
    """`drug_counts` of a model's yaofang.json, or of the one in a model's folder: label -> training records that list it.

    Raises InputError where the file holds none, as those of models do that were trained before it was written.
    """
    file = Path(path) / "yaofang.json" if Path(path).is_dir() else Path(path)
    way_out = "Give the yaofang.json of a model, or the training records with --train."
    try:
        value = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON ({error.msg})", file=file, line=error.lineno, way_out=way_out) from error
    counts = value.get("drug_counts") if isinstance(value, dict) else None
    if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
        raise InputError("there are no counts of drugs", file=file, field="drug_counts", way_out=way_out)
    return counts


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=file) from error
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", file=file, way_out="Save the file as UTF-8.") from error
