"""How well drugs are named by how often the training records held them: head, middle, tail, and never seen.

Works on sets of names and on counts; knows no files. The shares of head and tail are those of `data.statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from yaofang.data.statistics import HEAD_SHARE, TAIL_SHARE
from yaofang.eval.intervals import Figure, Sample

STRATA = ("head", "middle", "tail", "unseen")


@dataclass(frozen=True, slots=True)
class Stratum:
    """The drugs of one stratum, pooled: figures are ratios of sums over its labels and all records, not means over records."""

    name: str
    """One of STRATA."""
    labels: int
    """Labels that the training records put into it; of `unseen`, those that gold or prediction name."""
    gold: int
    """Gold entries of this stratum, over all records."""
    predicted: int
    hits: int
    """Entries that both name."""
    precision: Figure | None
    """hits / predicted; None where nothing of the stratum is predicted."""
    recall: Figure | None
    """hits / gold; None where the gold holds nothing of the stratum."""
    f1: Figure | None
    """2 hits / (gold + predicted), which is 2PR/(P+R) of the two above (micro-averaged F1 within the stratum)."""


def strata_of(counts: Mapping[str, int]) -> dict[str, str]:
    """Label -> stratum by its number of training records; a label that is not in the result is unseen.

    Most frequent first, equals by label: the first 9.90% are head, the last 10.07% tail (CDrugRed, arXiv 2510.21084: 58 and
    59 of its 586 labels), both rounded to whole labels.
    """
    ranked = sorted((label for label, count in counts.items() if count > 0), key=lambda label: (-counts[label], label))
    head, tail = round(HEAD_SHARE * len(ranked)), round(TAIL_SHARE * len(ranked))
    middle = len(ranked) - head - tail
    names = ["head"] * head + ["middle"] * middle + ["tail"] * tail
    return dict(zip(ranked, names, strict=True))


def by_stratum(
    gold: Sequence[AbstractSet[str]], predicted: Sequence[AbstractSet[str]], counts: Mapping[str, int], sample: Sample
) -> tuple[Stratum, ...]:
    """One Stratum for each of STRATA; `gold` and `predicted` are one set a record, in the order of the sample's rows."""
    where = strata_of(counts)
    sides = (gold, predicted, [y & p for y, p in zip(gold, predicted, strict=True)])
    entries = np.array([[[_of(names, name, where) for name in STRATA] for names in side] for side in sides], dtype=np.float64)
    y, p, hits = entries
    figures = sample.ratios(np.hstack([hits, hits, 2 * hits]), np.hstack([p, y, y + p]))
    unseen = {name for side in (gold, predicted) for names in side for name in names} - set(where)
    sizes = {name: list(where.values()).count(name) for name in STRATA} | {"unseen": len(unseen)}
    return tuple(
        Stratum(
            name=name,
            labels=sizes[name],
            gold=int(y[:, at].sum()),
            predicted=int(p[:, at].sum()),
            hits=int(hits[:, at].sum()),
            precision=figures[at],
            recall=figures[at + len(STRATA)],
            f1=figures[at + 2 * len(STRATA)],
        )
        for at, name in enumerate(STRATA)
    )


def _of(names: AbstractSet[str], stratum: str, where: Mapping[str, str]) -> int:
    return sum(where.get(name, "unseen") == stratum for name in names)
