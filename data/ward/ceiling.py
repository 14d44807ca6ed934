"""The ward's ceiling: how well its own best list for a record would score against what its doctors prescribe.

The visit's state before prescribing (diseases, values, team, home drugs) is held and the therapy is drawn again many times.
From one half of the draws the best list is chosen, on the other it is scored, so the figure is not flattered by its own choice.
A model sees less than this state, so no model can be expected to score higher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yaofang.data.ward.rare import Draft
from yaofang.data.ward.therapy import Prescriber


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Mean over records of the expected Jaccard index, with a 95% interval by bootstrap over patients."""

    mean: float
    low: float
    high: float
    f1: float
    records: int
    draws: int


def jaccard(a: set[str] | frozenset[str], b: set[str] | frozenset[str]) -> float:
    """|a and b| / |a or b|."""
    both = len(a & b)
    return both / (len(a) + len(b) - both)


def redrawn(draft: Draft, prescriber: Prescriber, draws: int, rng: np.random.Generator) -> list[frozenset[str]]:
    """Lists that doctors of this team might have written for this visit."""
    case = prescriber.case(draft.stay.facts, draft.stay.team, draft.home, draft.considered)
    return [frozenset(drug.label for drug in prescriber.prescribe(case, rng)) for _ in range(draws)]


def best_list(lists: Sequence[frozenset[str]]) -> frozenset[str]:
    """The first k labels by how often they are drawn, with the k of the highest mean Jaccard index over the draws."""
    counts = Counter(label for one in lists for label in one)
    ranked = [label for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    sizes = np.array([len(one) for one in lists])
    inside = np.cumsum([[label in one for one in lists] for label in ranked], axis=0)
    taken = np.arange(1, len(ranked) + 1)[:, None]
    scores = (inside / (sizes[None, :] + taken - inside)).mean(axis=1)
    return frozenset(ranked[: int(scores.argmax()) + 1])


def measure_ceiling(drafts: Sequence[Draft], prescriber: Prescriber, *, draws: int = 60, seed: int = 0) -> Ceiling:
    """The ceiling over some visits."""
    own: dict[int, list[tuple[float, float]]] = {}
    for draft in drafts:
        rng = np.random.default_rng([seed, draft.patient.number, 4, draft.stay.number])
        lists = redrawn(draft, prescriber, draws, rng)
        best = best_list(lists[: draws // 2])
        scored = lists[draws // 2 :]
        f1 = [2 * len(best & one) / (len(best) + len(one)) for one in scored]
        score = float(np.mean([jaccard(best, one) for one in scored])), float(np.mean(f1))
        own.setdefault(draft.patient.number, []).append(score)
    low, high = interval([[j for j, _ in scores] for scores in own.values()], seed)
    every = [score for scores in own.values() for score in scores]
    mean, f1_mean = np.mean(every, axis=0)
    return Ceiling(float(mean), low, high, float(f1_mean), len(every), draws)


def interval(scores: Sequence[Sequence[float]], seed: int, times: int = 1000) -> tuple[float, float]:
    """95% interval of the mean over records, by drawing patients with replacement."""
    rng = np.random.default_rng([seed, 5])
    sums = np.array([sum(one) for one in scores])
    counts = np.array([len(one) for one in scores])
    chosen = rng.integers(len(scores), size=(times, len(scores)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
