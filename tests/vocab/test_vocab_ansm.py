import json
from pathlib import Path

import pytest

from yaofang.vocab import build_ansm
from yaofang.vocab.ansm import LEVELS, MECHANISMS, Ansm, load_ansm
from yaofang.vocab.conflicts import TABLES
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.evidence import load_terms
from yaofang.vocab.files import read_table


@pytest.fixture(scope="module")
def ansm() -> Ansm:
    return load_ansm(TABLES)


def level(ansm: Ansm, a: str, b: str) -> str | None:
    """The highest level over all rules that match two INN."""
    names = [{rule.a, rule.b} for rule in ansm.rules]
    found = [
        rule.level
        for rule, pair in zip(ansm.rules, names, strict=True)
        if any({x, y} == pair for x in ansm.names(a) for y in ansm.names(b))
    ]
    return max(found, key=LEVELS.index, default=None)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("simvastatin", "clarithromycin", "contraindicated"),
        ("colchicine", "clarithromycin", "contraindicated"),
        ("repaglinide", "gemfibrozil", "contraindicated"),
        ("metoprolol", "verapamil", "major"),
        ("acetylsalicylic acid", "clopidogrel", "moderate"),
        ("acetylsalicylic acid", "warfarin", "minor"),
        ("metformin", "atorvastatin", None),
    ],
)
def test_the_thesaurus_answers_for_inn(a: str, b: str, expected: str | None, ansm: Ansm) -> None:
    assert level(ansm, a, b) == expected
    assert level(ansm, b, a) == expected


def test_the_committed_tables_have_the_size_of_the_edition(ansm: Ansm) -> None:
    assert len(read_table(TABLES / "ansm_index.tsv")) == 1081
    assert len({name for names in ansm.classes.values() for name in names}) >= 190
    assert len(ansm.rules) > 1500
    assert all((TABLES / name).stat().st_size < 500_000 for name in ("ansm_rules.tsv", "ansm_classes.tsv"))


def test_every_ingredient_of_the_vocabulary_that_the_index_spells_alike_is_linked(ansm: Ansm) -> None:
    index = {row["substance"] for _, row in read_table(TABLES / "ansm_index.tsv")}
    terms = load_terms(TABLES)
    for drug in load_vocabulary().drugs:
        for unit in terms.units(drug):
            if unit.is_herb:
                continue  # a herb holds little of the substance: rows of our own speak of it
            if unit.ingredient in index or f"{unit.ingredient}e" in index:
                assert ansm.knows(unit.ingredient) or ansm.knows(unit.moiety), unit.ingredient


def test_drugs_newer_than_the_edition_are_unknown(ansm: Ansm) -> None:
    for inn in ("finerenone", "dapagliflozin", "empagliflozin", "canagliflozin", "semaglutide", "roxadustat", "vonoprazan"):
        assert not ansm.knows(inn)
        assert ansm.names(inn) == frozenset()


def test_a_local_route_answers_only_to_classes_that_name_it(ansm: Ansm) -> None:
    assert any("collyres" in name for name in ansm.names("carteolol", "ophthalmic"))
    assert ansm.names("carteolol", "ophthalmic") < ansm.names("carteolol")
    assert ansm.names("levofloxacin", "ophthalmic") == frozenset()


def test_every_mechanism_of_the_table_has_chinese_words(ansm: Ansm) -> None:
    kinds = {row["mechanism"] for _, row in read_table(TABLES / "ansm_rules.tsv")} - {"-"}
    assert kinds <= set(MECHANISMS)
    assert {kind for kind, _ in build_ansm.MECHANISMS} == set(MECHANISMS)
    assert all(rule.level in LEVELS for rule in ansm.rules)


def entry(main: str, plus: str, *levels: str, info: str = "", mechanism: str = "") -> dict[str, object]:
    details = [{"level": name, "info": info} for name in levels]
    return {"main_drug": main, "plus_drug": plus, "severity_levels": details, "interaction_mechanism": mechanism}


def write_source(folder: Path, rules: list[dict[str, object]]) -> None:
    substances = [
        {"substance": "Bêtaxine", "drug_classes": ["Bêta- bloquants (y compris collyres)"]},
        {"substance": "alphacine", "drug_classes": []},
    ]
    (folder / build_ansm.SUBSTANCES).write_text(json.dumps(substances), encoding="utf-8")
    (folder / build_ansm.RULES).write_text(json.dumps(rules), encoding="utf-8")


def test_the_script_writes_levels_classes_and_kinds_of_mechanism_without_prose(tmp_path: Path) -> None:
    write_source(
        tmp_path,
        [
            entry("BÊTAXINE", "ALPHACINE", "CONTRE-INDICATION", "A prendre en compte", mechanism="Risque hémorragique."),
            entry("ALPHACINE", "BÊTAXINE", "A prendre en compte", "CONTRE-INDICATION"),
            entry("ALPHACINE", "bêta-bloquants (y compris collyres)", "Précaution d'emploi", info="sauf chez l'enfant"),
        ],
    )
    build_ansm.main(["--from", str(tmp_path), "--out", str(tmp_path)])
    rules = [tuple(row.values()) for _, row in read_table(tmp_path / "ansm_rules.tsv")]
    assert rules == [
        ("alphacine", "beta-bloquants (y compris collyres)", "moderate", "yes", "-"),
        ("alphacine", "betaxine", "contraindicated|minor", "yes", "bleeding"),
    ]
    classes = [tuple(row.values()) for _, row in read_table(tmp_path / "ansm_classes.tsv")]
    assert classes == [("betaxine", "beta-bloquants (y compris collyres)", "ophthalmic")]
    text = (tmp_path / "ansm_rules.tsv").read_text(encoding="utf-8")
    assert "October 2020" in text
    assert "emorragique" not in text


def test_a_folder_without_the_thesaurus_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2020_01"):
        build_ansm.build(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []
