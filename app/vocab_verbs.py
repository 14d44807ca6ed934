"""`yaofang vocab`: ask the conflict table why two drugs do not go together, and what it knows.

yaofang vocab conflicts 辛伐他汀片 克拉霉素片 --json

Knows how to print; the tiers and their reasons come from yaofang.vocab.conflicts.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yaofang.vocab.conflicts import ConflictTable
    from yaofang.vocab.drugs import Vocabulary

app = typer.Typer(name="vocab", help="The drugs that may be named, and which of them conflict.", no_args_is_help=True)

VocabularyOption = Annotated[Path | None, typer.Option("--vocab", help="Another list of labels (.json, .txt, .tsv).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]
NO_ENTRY = "无记录（不等于安全）"


@app.command()
def conflicts(
    names: Annotated[list[str], typer.Argument(metavar="NAME NAME ...", help="Two or more drug names.")],
    vocab: VocabularyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain every pair of the named drugs: tier, reasons, sources. No entry is never `safe`."""
    from yaofang.app.tables import show
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary

    vocabulary = load_vocabulary(vocab)
    labels = _labels(names, vocabulary)
    pairs = explain(labels, load_conflicts(vocabulary))
    rows = [
        (
            pair["a"],
            pair["b"],
            pair["tier"] or NO_ENTRY,
            "\n".join(reason["text"] for reason in pair["reasons"]),
            "\n".join(reason["source"] for reason in pair["reasons"]),
        )
        for pair in pairs
    ]
    unknown = sorted({label for pair in pairs for label in pair["no_data"]})
    notes = [f"相互作用库中无资料：{'、'.join(unknown)}（无资料不等于安全）"] if unknown else []
    show("药物冲突", ("药物", "药物", "级别", "原因", "来源"), rows, as_json=as_json, data=pairs, notes=notes)


@app.command("list")
def list_(vocab: VocabularyOption = None, as_json: JsonOption = False) -> None:
    """Count the labels by kind and the pairs by tier."""
    from yaofang.app.tables import show
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary

    vocabulary = load_vocabulary(vocab)
    counts = count(vocabulary, load_conflicts(vocabulary))
    rows = [(name, value) for name, value in counts.items() if not isinstance(value, list)]
    show("药品目录与冲突表", ("项目", "数值"), rows, as_json=as_json, data=counts)


def explain(labels: list[str], table: ConflictTable) -> list[dict[str, Any]]:
    """Every pair of labels as {a, b, tier, reasons, sources, no_data}; tier is None where no source has an entry."""
    silent = set(table.no_data())
    found = []
    for a, b in combinations(labels, 2):
        conflict = table.between(a, b)
        reasons = table.reasons(a, b)
        found.append(
            {
                "a": a,
                "b": b,
                "tier": f"T{conflict.tier}" if conflict else None,
                "reasons": [{"kind": one.kind, "text": one.text, "source": one.source} for one in reasons],
                "sources": list(dict.fromkeys(one.source for one in reasons)),
                "no_data": [label for label in (a, b) if label in silent],
            }
        )
    return found


def count(vocabulary: Vocabulary, table: ConflictTable) -> dict[str, Any]:
    """Labels by kind, pairs by tier with their share, labels without data, and both versions."""
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
        "vocabulary_version": vocabulary.version,
        "conflicts_version": table.version,
    }


def _labels(names: list[str], vocabulary: Vocabulary) -> list[str]:
    """Each name's label, in order, once."""
    from yaofang.vocab.errors import InputError
    from yaofang.vocab.matching import match

    matches = [match(name, vocabulary) for name in names]
    unknown = [found.text for found in matches if found.drug is None]
    if unknown:
        raise InputError(
            f"not in the vocabulary: {'、'.join(unknown)}",
            field="NAME",
            way_out="Write the names as the vocabulary has them (yaofang vocab list), or load another list by --vocab.",
        )
    labels = list(dict.fromkeys(found.drug.label for found in matches if found.drug is not None))
    if len(labels) < 2:
        raise InputError("a pair needs two drugs", field="NAME", way_out="Give two or more names of different drugs.")
    return labels
