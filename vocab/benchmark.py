"""Sizes and times of the vocabulary: the lexicon, the conflict tables, building, loading from the cache, matching names.

    yaofang bench vocabulary --out docs/results/vocabulary.json

Says nothing about whether a row is right: that is a pharmacist's work and the tests'.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

from yaofang.vocab.conflicts import TABLES, load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.evidence import TABLES_OF_ROWS
from yaofang.vocab.files import read_table
from yaofang.vocab.lexicon import forget_lexicon, load_lexicon
from yaofang.vocab.matching import link, meaning

NAMES = 10_000
"""Names of the matching benchmark: the lexicon's generics as a note writes them, each with a dose; one in ten is damaged."""


def measure(rounds: int = 5) -> dict[str, Any]:
    """All figures; times are medians of `rounds`, in seconds. Building includes reading every table, the lexicon too."""
    vocabulary = load_vocabulary()
    with _empty_cache():
        build = _median(lambda: load_conflicts(vocabulary), rounds, before=_clear)
        load_conflicts(vocabulary)
        cached = _median(lambda: load_conflicts(vocabulary).severity, rounds)
    written = list(islice(_written(), NAMES))
    started = perf_counter()
    linked = sum(meaning(name).drug.kind in ("drug", "patent_medicine") for name in written)
    spent = perf_counter() - started
    return {
        "labels": len(vocabulary),
        "lexicon": load_lexicon().count(),
        "tables": {
            name.removesuffix(".tsv"): _rows(name)
            for name in (*TABLES_OF_ROWS, "ansm_rules.tsv", "ansm_reviewed.tsv", "classes.tsv")
        },
        "patient_rules": _rows("patient_rules.tsv"),
        "diagnoses": _rows("diagnoses.tsv"),
        "indications": _rows("indications.tsv"),
        "kinds": dict(Counter(drug.kind for drug in vocabulary.drugs)),
        "relinked": sum(link(drug.label).generic == drug.generic for drug in vocabulary.drugs),
        "build_s": round(build, 4),
        "cached_s": round(cached, 4),
        "names": len(written),
        "names_linked": linked,
        "names_s": round(spent, 3),
    }


def _rows(name: str) -> int:
    return len(read_table(TABLES / name))


def _median(work: Callable[[], object], rounds: int, before: Callable[[], object] = lambda: None) -> float:
    times = []
    for _ in range(rounds):
        before()
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return statistics.median(times)


@contextmanager
def _empty_cache() -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _clear() -> None:
    forget_lexicon()  # building begins with reading the tables
    for file in (Path(os.environ["XDG_CACHE_HOME"]) / "yaofang").glob("conflicts-*.npy"):
        file.unlink()


def _written() -> Iterator[str]:
    doses = ("5mg qd", "0.1g*24片", "（进口）", "片", "注射液 10ml", "胶囊 每晚一次", "")
    for number, (generic, dose) in enumerate(zip(cycle(load_lexicon().entries), cycle(doses), strict=False)):
        name = generic[:-1] if number % 10 == 9 and len(generic) > 4 else generic
        yield f"{number % 97}.{name}{dose} {number}mg"
