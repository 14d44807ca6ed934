from pathlib import Path

import pytest

from yaofang.data.ward.rules import Facts, parse
from yaofang.data.ward.tables import FOLDER, load_tables
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

FACTS = Facts("女", {"egfr": 45.0, "age": 66.0}, {"t2dm", "cad"}, {"statin"}, {"阿托伐他汀钙片"})


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("-", True),
        ("egfr<60", True),
        ("egfr<45", False),
        ("egfr<=45,age>=66", True),
        ("has:cad,not:gout", True),
        ("has:gout|t2dm", True),
        ("not:gout|t2dm", False),
        ("drug:statin", True),
        ("drug:阿托伐他汀钙片", True),
        ("nodrug:statin", False),
        ("sex=女", True),
        ("sex=男", False),
        ("hba1c>=9", False),
    ],
)
def test_a_condition_holds_only_where_every_part_does(text: str, holds: bool) -> None:
    assert parse(text).holds(FACTS) is holds


@pytest.mark.parametrize("text", ["egfr~60", "cad", "has:", "sex=x"])
def test_a_condition_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no condition"):
        parse(text)


def test_the_ward_knows_at_least_80_diseases_with_wordings_and_what_a_record_needs() -> None:
    diseases = load_tables().diseases
    assert len(diseases) >= 80
    assert len({disease.id for disease in diseases}) == len(diseases)
    assert sum(len(disease.names) >= 2 for disease in diseases) > 0.7 * len(diseases)
    assert all(0 <= p < 1 for disease in diseases for p in disease.prevalence)


def test_no_text_of_a_disease_has_a_placeholder_that_nothing_fills() -> None:
    for disease in load_tables().diseases:
        for phrase in (*disease.complaints, *disease.present, *disease.past):
            assert "{" not in phrase.replace("{dur}", "").replace("{years}", "")
        assert not any("{" in phrase for phrase in (*disease.signs, *disease.exams, *disease.course))


def test_the_wards_labels_are_the_vocabularys_with_59_seen_once_and_65_never_in_training() -> None:
    labels = load_tables().labels
    assert {label.label for label in labels} == set(load_vocabulary().labels)
    notes = {label.label: label.note for label in labels}
    assert list(notes.values()).count("once") == 59
    assert list(notes.values()).count("test_only") == 65


def _copy(folder: Path) -> Path:
    for file in FOLDER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_row_that_names_an_unknown_group_is_refused_with_the_file(tmp_path: Path) -> None:
    table = _copy(tmp_path) / "therapy.tsv"
    table.write_text(table.read_text(encoding="utf-8") + "t2dm\tno_such_group\t0.5\t-\tx\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"therapy\.tsv.*no_such_group"):
        load_tables(tmp_path)


def test_a_condition_that_cannot_be_read_is_refused_with_the_line(tmp_path: Path) -> None:
    table = _copy(tmp_path) / "findings.tsv"
    lines = len(table.read_text(encoding="utf-8").splitlines())
    table.write_text(table.read_text(encoding="utf-8") + "odd\tk~3\t血钾\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"line {lines + 1}.*expr"):
        load_tables(tmp_path)
