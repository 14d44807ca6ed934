"""`yaofang vocab`: what a drug's name means, which drugs do not go together and why, and what the tables know.

yaofang vocab conflicts 华法林 阿司匹林肠溶片 胺碘酮

Knows how to print; names come from yaofang.vocab.matching, tiers and their reasons from yaofang.vocab.conflicts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yaofang.vocab.conflicts import ConflictTable
    from yaofang.vocab.coprescription import CoPrescription
    from yaofang.vocab.drugs import Drug, Vocabulary
    from yaofang.vocab.evidence import Row

app = typer.Typer(name="vocab", help="The drugs that may be named, and which of them conflict.", no_args_is_help=True)

VocabularyOption = Annotated[Path | None, typer.Option("--vocab", help="Another list of labels (.json, .txt, .tsv).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]
DdinterOption = Annotated[Path | None, typer.Option("--ddinter", help="Folder with DDInter's CSV files, as another source.")]
InteractionsOption = Annotated[
    Path | None, typer.Option("--interactions", help="CSV of your own: a, b, level, mechanism, source.")
]
NO_ENTRY = "无记录（不等于安全）"
KINDS = {"drug": "药品", "patent_medicine": "中成药", "not_a_drug": "非药品", "unlinked": "未识别"}


@app.command()
def conflicts(
    names: Annotated[list[str], typer.Argument(metavar="NAME NAME ...", help="Two or more drug names of any kind.")],
    vocab: VocabularyOption = None,
    ddinter: DdinterOption = None,
    interactions: InteractionsOption = None,
    evidence: Annotated[Path | None, typer.Option("--evidence", help="File that `vocab evidence --out` wrote.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain every pair of the named drugs: tier, reasons, sources, evidence. No entry is never `safe`."""
    from yaofang.app.tables import show
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import Vocabulary, load_vocabulary

    drugs = _drugs(names, load_vocabulary(vocab))
    table = load_conflicts(Vocabulary(tuple(drugs)), extra=_extra(ddinter, interactions))
    pairs = explain(table, _counted(evidence))
    rows = [
        (
            pair["a"],
            pair["b"],
            pair["tier"] or NO_ENTRY,
            "\n".join(reason["text"] for reason in pair["reasons"]),
            "\n".join(reason["source"] for reason in pair["reasons"]),
            _said(pair["evidence"]),
        )
        for pair in pairs
    ]
    unknown = table.no_data()
    notes = [f"相互作用库中无资料：{'、'.join(unknown)}（无资料不等于安全）"] if unknown else []
    listed = [pair for pair in pairs if pair["tier"]]
    columns = ("药物", "药物", "级别", "原因", "来源", *(("合用证据",) if evidence else ()))
    show("药物冲突", columns, [row[: len(columns)] for row in rows], as_json=as_json, data=listed, notes=notes)


@app.command()
def match(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT ...", help="Names, or lists of names in free text.")],
    vocab: VocabularyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which drug each written name means: the vocabulary's label, the generic, its ingredients, how it was found."""
    from yaofang.app.tables import show
    from yaofang.vocab.drugs import load_vocabulary
    from yaofang.vocab.matching import match as match_label
    from yaofang.vocab.matching import meaning
    from yaofang.vocab.naming import names_in

    vocabulary = load_vocabulary(vocab)
    found: list[dict[str, Any]] = []
    for name in (name for text in texts for name in names_in(text)):
        label = match_label(name, vocabulary).drug
        meant = meaning(name).to_json()
        found.append({"text": name, "match": label.label if label else None, **{k: meant[k] for k in meant if k != "label"}})
    rows = [
        (
            row["text"],
            row["match"],
            row["generic"],
            "+".join(row["ingredients"]),
            KINDS[row["kind"]],
            row["method"],
            "、".join(row["candidates"]),
        )
        for row in found
    ]
    show("药名匹配", ("写法", "目录中的名称", "通用名", "成分", "类别", "方法", "可能"), rows, as_json=as_json, data=found)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="LIST", help="A hospital's list of names (.json, .txt, .csv, .tsv).")],
    out: Annotated[Path | None, typer.Option("--out", help="JSON report to write.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Link every name of a list to its generic and ingredients, and name those that could not be linked."""
    from yaofang.app.tables import show
    from yaofang.vocab.files import check_place, whole_file
    from yaofang.vocab.lists import read_names
    from yaofang.vocab.matching import meaning

    check_place(out)
    report = {"labels": [meaning(label).to_json() for label in read_names(file)]}
    if out is not None:
        with whole_file(out) as handle:
            json.dump(report, handle, ensure_ascii=False, indent=1)
    kinds = Counter(row["kind"] for row in report["labels"])
    rows = [(KINDS[kind], kinds[kind], kinds[kind] / len(report["labels"])) for kind in KINDS]
    open_ = [row for row in report["labels"] if row["kind"] == "unlinked"]
    notes = [f"未识别：{row['label']}（可能：{'、'.join(row['candidates']) or '无'}）" for row in open_]
    show(
        f"{file.name}：{len(report['labels'])} 个名称",
        ("类别", "数量", "占比"),
        rows,
        as_json=as_json,
        data=report,
        notes=notes,
    )


@app.command()
def matrix(
    out: Annotated[Path, typer.Option("--out", help="File .npz to write.")],
    vocab: VocabularyOption = None,
    ddinter: DdinterOption = None,
    interactions: InteractionsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the conflict matrix A [D, D] in [0, 1] with its labels, tiers and version."""
    import numpy as np

    from yaofang.app.tables import show
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary
    from yaofang.vocab.errors import InputError
    from yaofang.vocab.files import check_place, whole_bytes

    check_place(out)
    if out.suffix != ".npz":
        raise InputError("the file's name must end in .npz", file=out, field="--out", way_out="For example A.npz.")
    table = load_conflicts(load_vocabulary(vocab), extra=_extra(ddinter, interactions))
    labels = np.array(table.vocabulary.labels)
    with whole_bytes(out) as handle:
        np.savez_compressed(handle, A=table.severity, tiers=table.tiers, labels=labels, version=np.array(table.version))
    counts = count(table)
    show(str(out), ("项目", "数值"), _numbers(counts), as_json=as_json, data=counts)


@app.command()
def pairs(
    out: Annotated[Path, typer.Option("--out", help="CSV file to write.")],
    vocab: VocabularyOption = None,
    ddinter: DdinterOption = None,
    interactions: InteractionsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write every pair that has an entry: its tier, and what each source says, a column a source."""
    import csv

    from yaofang.app.tables import show
    from yaofang.vocab.conflicts import TABLES, load_conflicts
    from yaofang.vocab.drugs import load_vocabulary
    from yaofang.vocab.files import check_place, read_table, whole_file

    check_place(out)
    table = load_conflicts(load_vocabulary(vocab), extra=_extra(ddinter, interactions))
    sources = [row for _, row in read_table(TABLES / "sources.tsv")]
    used: Counter[str] = Counter()
    with whole_file(out) as handle:
        writer = csv.DictWriter(handle, ["a", "b", "tier", *(row["column"] for row in sources)], restval="-")
        writer.writeheader()
        for pair in table.columns():
            writer.writerow(pair)
            used.update(pair.keys() - {"a", "b", "tier"})
    rows = [(row["column"], used[row["column"]], row["edition"], row["content"], row["licence"]) for row in sources]
    data = [{**row, "pairs": used[row["column"]]} for row in sources]
    show(str(out), ("来源", "对数", "版本", "内容", "许可"), rows, as_json=as_json, data=data)


@app.command()
def evidence(
    records: Annotated[Path, typer.Option("--records", help="Training records with 出院带药列表.")],
    out: Annotated[Path | None, typer.Option("--out", help="JSON file with every pair.")] = None,
    top: Annotated[int, typer.Option("--top", help="Rows of each table to print.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Count who gets which drugs together: pairs that doctors avoid, and T1 pairs that they combine, both for review."""
    from yaofang.app.tables import print_json, show
    from yaofang.data.records import read_records
    from yaofang.vocab.coprescription import count_pairs, to_json
    from yaofang.vocab.files import check_place, whole_file
    from yaofang.vocab.matching import generic_of

    check_place(out)
    read = read_records(records).records
    counted = count_pairs((record.patient, [generic_of(label) for label in record.drugs]) for record in read)
    if out is not None:
        with whole_file(out) as handle:
            json.dump(to_json(counted), handle, ensure_ascii=False)
    found = review(counted)
    if as_json:
        print_json(found)
        return
    columns = ("药物", "药物", "级别", "合用患者", "期望", "比值", "95%区间")
    for title, key in (("医生回避的组合（待审）", "avoided"), ("T1 而仍合用的组合（待审）", "combined_t1")):
        rows = [
            (p["a"], p["b"], p["tier"], p["observed"], p["expected"], p["ratio"], f"{p['low']:.2f}–{p['high']:.2f}")
            for p in found[key][:top]
        ]
        show(f"{title}：{len(found[key])} 对，{counted.patients} 名患者", columns, rows, as_json=False, data=None)


@app.command("list")
def list_(
    vocab: VocabularyOption = None,
    ddinter: DdinterOption = None,
    interactions: InteractionsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the labels by kind, the pairs by tier, and what the lexicon holds."""
    from yaofang.app.tables import show
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary

    counts = count(load_conflicts(load_vocabulary(vocab), extra=_extra(ddinter, interactions)))
    show("药品目录与冲突表", ("项目", "数值"), _numbers(counts), as_json=as_json, data=counts)


def explain(table: ConflictTable, counted: CoPrescription | None = None) -> list[dict[str, Any]]:
    """Every pair of a table's labels as {a, b, tier, reasons, sources, evidence}; tier is None where there is no entry."""
    found = []
    drugs = table.vocabulary.drugs
    for a, b in combinations(drugs, 2):
        conflict = table.between(a.label, b.label)
        reasons = table.reasons(a.label, b.label)
        pair = counted.between(a.generic, b.generic) if counted else None
        found.append(
            {
                "a": a.label,
                "b": b.label,
                "tier": f"T{conflict.tier}" if conflict else None,
                "reasons": [{"kind": one.kind, "text": one.text, "source": one.source} for one in reasons],
                "sources": list(dict.fromkeys(one.source for one in reasons)),
                "evidence": pair.to_json() if pair else None,
            }
        )
    return found


def review(counted: CoPrescription) -> dict[str, Any]:
    """What a training set proposes for review: {patients, records, avoided, combined_t1}, each pair with its tier."""
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import Vocabulary
    from yaofang.vocab.matching import link

    names = sorted({name for pair in counted.pairs for name in pair})
    table = load_conflicts(Vocabulary(tuple(link(name) for name in names), source="training set"))

    def with_tier(pairs: Sequence[Any]) -> list[dict[str, Any]]:
        tiers = ((pair, int(table.tiers[table.vocabulary.index(pair.a), table.vocabulary.index(pair.b)])) for pair in pairs)
        return [{**pair.to_json(), "tier": f"T{tier}" if tier else None} for pair, tier in tiers]

    combined = [pair for pair in with_tier(counted.combined()) if pair["tier"] == "T1"]
    return {
        "patients": counted.patients,
        "records": counted.records,
        "avoided": with_tier(counted.avoided()),
        "combined_t1": combined,
    }


def count(table: ConflictTable) -> dict[str, Any]:
    """Labels by kind, pairs by tier with their share, labels without data, the lexicon's size, and both versions."""
    from yaofang.vocab.lexicon import load_lexicon

    vocabulary = table.vocabulary
    pairs = len(vocabulary.labels) * (len(vocabulary.labels) - 1) // 2
    tiers = {f"T{tier}": int((table.tiers == tier).sum()) // 2 for tier in (1, 2, 3)}
    silent = table.no_data()
    return {
        "labels": len(vocabulary.labels),
        **dict(sorted(Counter(drug.kind for drug in vocabulary.drugs).items())),
        "pairs": pairs,
        **tiers,
        **{f"{tier}_share": round(number / max(pairs, 1), 5) for tier, number in tiers.items()},
        "no_data": len(silent),
        "no_data_labels": list(silent),
        "lexicon": load_lexicon().count(),
        "vocabulary_version": vocabulary.version,
        "conflicts_version": table.version,
    }


def _numbers(counts: dict[str, Any]) -> list[tuple[str, Any]]:
    flat = [(name, value) for name, value in counts.items() if not isinstance(value, list | dict)]
    return [*flat, *((f"lexicon: {name}", value) for name, value in counts["lexicon"].items())]


def _extra(ddinter: Path | None, interactions: Path | None) -> list[Row]:
    if ddinter is None and interactions is None:
        return []
    from yaofang.app.tables import say
    from yaofang.vocab.importers import ddinter_rows, interaction_rows, known_substances

    rows = [
        *(ddinter_rows(ddinter) if ddinter is not None else ()),
        *(interaction_rows(interactions) if interactions is not None else ()),
    ]
    used = sum({row.a, row.b} <= known_substances() for row in rows)
    say(f"{len(rows)} imported rows, {used} about two substances that the lexicon knows")
    return rows


def _counted(file: Path | None) -> CoPrescription | None:
    if file is None:
        return None
    from yaofang.vocab.coprescription import from_json
    from yaofang.vocab.errors import InputError

    try:
        return from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        way_out = "Give the file that `yaofang vocab evidence --out` wrote."
        raise InputError(f"no evidence file ({type(error).__name__})", file=file, field="--evidence", way_out=way_out) from None


def _said(pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    return (
        f"{pair['observed']} 人，期望 {pair['expected']:.1f}，比值 {pair['ratio']:.2f}（{pair['low']:.2f}–{pair['high']:.2f}）"
    )


def _drugs(names: list[str], vocabulary: Vocabulary) -> list[Drug]:
    """The drug of each name, under the name as it was typed, once."""
    from yaofang.vocab.drugs import UNKNOWN
    from yaofang.vocab.errors import InputError
    from yaofang.vocab.matching import meaning

    found = {}
    for name in (name.strip() for name in names):
        drug = vocabulary.drug(name) if name in vocabulary else None
        meant = meaning(name)
        if drug is None and meant.drug.kind in UNKNOWN:
            hint = f"; it may mean {'、'.join(meant.candidates)}" if meant.candidates else ""
            way_out = "Write the generic name, or load the list that has it by --vocab."
            raise InputError(f"{name!r} is not tied to one drug{hint}", field="NAME", way_out=way_out)
        found[name] = drug or meant.drug
    if len(found) < 2:
        raise InputError("a pair needs two drugs", field="NAME", way_out="Give two or more names of different drugs.")
    return list(found.values())
