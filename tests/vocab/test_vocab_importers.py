"""A user's own interactions: read, named where they are wrong, and weighed with the shipped sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.importers import ddinter_rows, interaction_rows
from yaofang.vocab.matching import link

HEADER = "DDInterID_A,Drug_A,DDInterID_B,Drug_B,Level\n"


def ddinter(folder: Path, *rows: str) -> Path:
    (folder / "ddinter_downloads_code_A.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return folder


def own(folder: Path, *rows: str) -> Path:
    file = folder / "own.csv"
    file.write_text("a,b,level,mechanism,source\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return file


def tier(*names: str, extra: list[object]) -> int:
    table = load_conflicts(Vocabulary(tuple(link(name) for name in names)), extra=extra)  # type: ignore[arg-type]
    return int(table.tiers[0, 1])


def test_ddinter_gives_its_levels_and_leaves_unknown_out(tmp_path: Path) -> None:
    rows = ddinter_rows(ddinter(tmp_path, "D1,Acarbose,D2,Teniposide,Moderate", "D1,Acarbose,D3,Rebamipide,Unknown"))
    assert [(row.a, row.b, row.level, row.issuer) for row in rows] == [("acarbose", "teniposide", "moderate", "DDInter")]


def test_an_imported_row_is_weighed_with_the_shipped_sources(tmp_path: Path) -> None:
    assert tier("瑞巴派特", "依帕司他", extra=[]) == 0
    rows = ddinter_rows(ddinter(tmp_path, "D1,Rebamipide,D2,Epalrestat,Major"))
    assert tier("瑞巴派特", "依帕司他", extra=list(rows)) == 2
    second = interaction_rows(own(tmp_path, "瑞巴派特,epalrestat,major,测试,某院药学部: 院内规则"))
    assert tier("瑞巴派特", "依帕司他", extra=[*rows, *second]) == 1


def test_two_rows_of_one_issuer_are_one_source(tmp_path: Path) -> None:
    rows = interaction_rows(own(tmp_path, "瑞巴派特,依帕司他,major,一,甲: 一", "瑞巴派特,依帕司他,major,二,甲: 二"))
    assert tier("瑞巴派特", "依帕司他", extra=list(rows)) == 2


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("二甲双胍,阿卡波糖,severe,x,甲: 乙", "level"),
        ("二甲双胍,阿卡波糖,major,x,甲", "source"),
        ("没有这种药,阿卡波糖,major,x,甲: 乙", "a"),
        ("二甲双胍,缬沙坦氢氯噻嗪,major,x,甲: 乙", "b"),
    ],
)
def test_a_bad_row_is_refused_with_line_and_field(row: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        interaction_rows(own(tmp_path, "二甲双胍,阿卡波糖,minor,x,甲: 乙", row))
    assert (caught.value.line, caught.value.field) == (3, field)


def test_a_folder_or_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no CSV file"):
        ddinter_rows(tmp_path)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="no column Drug_A"):
        ddinter_rows(tmp_path)
    with pytest.raises(InputError, match="no column level"):
        interaction_rows(tmp_path / "x.csv")
    with pytest.raises(InputError, match="cannot be read"):
        interaction_rows(tmp_path / "absent.csv")
    (tmp_path / "y").mkdir()
    with pytest.raises(InputError, match="no level"):
        ddinter_rows(ddinter(tmp_path / "y", "D1,A,D2,B,Severe"))


def test_us_names_of_a_source_reach_the_inn(tmp_path: Path) -> None:
    rows = interaction_rows(own(tmp_path, "Glyburide,Rifampin,Major,测试,甲: 乙"))
    assert [(row.a, row.b, row.level) for row in rows] == [("glibenclamide", "rifampicin", "major")]
    (tmp_path / "dd").mkdir()
    found = ddinter_rows(ddinter(tmp_path / "dd", "D1,Acetaminophen,D2,Warfarin,Major"))
    assert {found[0].a, found[0].b} == {"paracetamol", "warfarin"}


@pytest.mark.parametrize(
    "row", ["metforminn,acarbose,major,x,甲: 乙", "metformin,acarbose,major,x,:", "metformin,acarbose,major,x,甲:"]
)
def test_a_misspelt_substance_or_a_source_without_a_name_is_refused(row: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        interaction_rows(own(tmp_path, row))
