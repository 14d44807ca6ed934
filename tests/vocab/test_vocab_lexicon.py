"""The lexicon: its size, its codes, and that no spelling leads to two generics."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.files import read_table
from yaofang.vocab.lexicon import AREAS, FOLDER, load_lexicon
from yaofang.vocab.matching import meaning

WHO = Path(__file__).resolve().parents[3] / "shared" / "reference" / "who_atc_2026.csv"
LEXICON = load_lexicon()


def rows() -> list[dict[str, str]]:
    return [row for area in AREAS for _, row in read_table(FOLDER / "lexicon" / f"{area}.tsv")]


def test_the_lexicon_has_the_size_that_the_documents_promise() -> None:
    sizes = LEXICON.count()
    assert sizes["drug"] >= 1500
    assert sizes["patent_medicine"] >= 300


def test_a_generic_and_route_stands_in_one_table_only() -> None:
    bundled = {(drug.generic, drug.route) for drug in load_vocabulary()}
    keys = [(row["generic"], row["route"]) for row in rows()]
    assert len(set(keys)) == len(keys), [key for key in keys if keys.count(key) > 1][:5]
    assert not bundled & set(keys), sorted(bundled & set(keys))[:5]


def test_a_generic_has_the_same_active_ingredient_by_every_route() -> None:
    for generic, entries in LEXICON.entries.items():
        assert len({entry.ingredients[:1] for entry in entries}) == 1, generic


def test_every_generic_and_every_spelling_of_a_row_means_its_own_generic() -> None:
    for name, found in LEXICON.spellings.items():  # 丹参 alone may be the tablet or the injection: one herb, no drug inside
        kinds = {entry.kind for generic in found for entry in LEXICON.entries[generic]}
        holds = [entry.ingredients for generic in found for entry in LEXICON.entries[generic] if entry.ingredients]
        assert len(found) == 1 or (kinds == {"patent_medicine"} and not holds), (name, found)
    for generic in LEXICON.entries:
        assert meaning(generic).drug.generic == generic


def test_every_drug_has_an_ingredient() -> None:
    assert [name for name, entries in LEXICON.entries.items() if entries[0].kind == "drug" and not entries[0].ingredients] == []


@pytest.mark.skipif(not WHO.exists(), reason="../shared/reference/who_atc_2026.csv is absent")
def test_every_code_exists_and_bears_the_name_it_is_given_to() -> None:
    with WHO.open(encoding="utf-8") as handle:
        names = {row["atc_code"]: row["atc_name"].lower() for row in csv.DictReader(handle)}
    wrong = []
    for generic, entries in LEXICON.entries.items():
        for entry in entries:
            if entry.atc is None:
                continue
            code = entry.atc.removeprefix("~")
            if code not in names:
                wrong.append((generic, entry.atc, "no such code"))
            elif len(code) == 7 and entry.kind == "drug" and not _bears(names[code], entry.ingredients):
                wrong.append((generic, entry.atc, names[code]))
    known = {(row["generic"], row["atc"]) for _, row in read_table(FOLDER / "lexicon" / "atc_names.tsv")}
    assert [found for found in wrong if (found[0], found[1]) not in known] == []


def _bears(name: str, ingredients: tuple[str, ...]) -> bool:
    """Whether a WHO name shares a word of five letters with an ingredient (salts, spellings and combinations differ)."""
    stems = {word[:5] for word in re.findall(r"[a-z]{4,}", name)}
    return any(word[:5] in stems for ingredient in ingredients for word in re.findall(r"[a-z]{4,}", ingredient.lower()))


def test_an_insulin_and_a_combination_are_split_into_their_ingredients() -> None:
    assert meaning("缬沙坦氢氯噻嗪片").drug.ingredients == ("valsartan", "hydrochlorothiazide")
    assert set(meaning("珍菊降压片").drug.ingredients) >= {"clonidine", "hydrochlorothiazide"}
    assert "glibenclamide" in meaning("消渴丸").drug.ingredients
    assert "paracetamol" in meaning("维C银翘片").drug.ingredients


def test_the_code_follows_the_route() -> None:
    assert meaning("左氧氟沙星滴眼液").drug.atc != meaning("左氧氟沙星片").drug.atc
    assert meaning("左氧氟沙星滴眼液").drug.route == "ophthalmic"
