"""Reads the ANSM tables: which thesaurus names an INN answers to, and the rules between those names.

The thesaurus is the French regulator's list of interactions, edition of October 2020. This module knows its levels,
classes and conditions; it knows nothing of Chinese labels, of routes of one drug, or of tiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yaofang.vocab.errors import InputError
from yaofang.vocab.files import read_table

EDITION = "ANSM: thesaurus 2020-10"
LEVELS = ("minor", "moderate", "major", "contraindicated")
MECHANISMS = {
    "serotonin": "5-羟色胺综合征",
    "qt": "QT延长、尖端扭转型室速",
    "rhabdomyolysis": "横纹肌溶解",
    "bleeding": "出血",
    "hyperkalaemia": "高钾血症",
    "hypokalaemia": "低钾血症",
    "hypoglycaemia": "低血糖",
    "hyponatraemia": "低钠血症",
    "hypercalcaemia": "高钙血症",
    "lactic_acidosis": "乳酸酸中毒",
    "bradycardia": "心动过缓、传导阻滞",
    "less_antihypertensive": "降压作用减弱",
    "hypotension": "低血压",
    "intracranial": "颅内压升高",
    "hypertension": "血压升高",
    "ergotism": "麦角中毒、血管收缩",
    "angioedema": "血管性水肿",
    "marrow": "骨髓抑制",
    "kidney": "肾功能损害",
    "seizure": "惊厥",
    "sedation": "中枢抑制",
    "anticholinergic": "抗胆碱作用叠加",
    "antagonism": "作用相互拮抗",
    "absorption": "吸收改变",
    "lower_level": "血药浓度或疗效下降",
    "higher_level": "血药浓度或毒性升高",
}

# (bears a condition, bears several levels); the lowest level stands until the condition was reviewed by hand.
CONDITIONS = {
    ("no", False): "",
    ("yes", False): "规则带条件",
    ("yes", True): "规则带条件，按最低级计",
}


@dataclass(frozen=True, slots=True)
class AnsmRule:
    """One rule between two names of the thesaurus (substances or classes)."""

    a: str
    b: str
    level: str
    """One of LEVELS: the reviewed one, or the lowest that the rule bears."""
    mechanism: str
    """Chinese, or empty."""
    condition: str
    """Chinese: how a rule that bears a condition was read, or empty."""


@dataclass(frozen=True, slots=True)
class Ansm:
    """The thesaurus: links from INN, memberships and rules."""

    links: Mapping[str, frozenset[str]]
    """INN -> substances of the thesaurus."""
    classes: Mapping[str, frozenset[str]]
    """Substance -> its classes, for systemic use."""
    local: Mapping[tuple[str, str], frozenset[str]]
    """(substance, local route) -> the classes that name this route."""
    rules: tuple[AnsmRule, ...]

    def knows(self, inn: str) -> bool:
        """Whether the INN is in the thesaurus' index."""
        return inn in self.links

    def names(self, inn: str, local_route: str | None = None) -> frozenset[str]:
        """Every name under which rules concern this INN; by a local route only the classes that say so."""
        substances = self.links.get(inn, frozenset())
        if local_route is not None:
            return frozenset().union(*(self.local.get((name, local_route), frozenset()) for name in substances))
        return substances.union(*(self.classes.get(name, frozenset()) for name in substances))


def load_ansm(folder: Path) -> Ansm:
    """Read the ansm_*.tsv tables of a folder; a link to a substance that is not in the index is an InputError."""
    classes: dict[str, set[str]] = {}
    local: dict[tuple[str, str], set[str]] = {}
    for _, row in read_table(folder / "ansm_classes.tsv"):
        classes.setdefault(row["substance"], set()).add(row["class"])
        for route in row["local_routes"].split(","):
            if route != "-":
                local.setdefault((row["substance"], route), set()).add(row["class"])
    return Ansm(
        _links(folder),
        {name: frozenset(found) for name, found in classes.items()},
        {key: frozenset(found) for key, found in local.items()},
        _rules(folder),
    )


def _links(folder: Path) -> dict[str, frozenset[str]]:
    index = {row["substance"] for _, row in read_table(folder / "ansm_index.tsv")}
    links: dict[str, set[str]] = {}
    file = folder / "ansm_substances.tsv"
    for number, row in read_table(file):
        if row["ansm"] not in index:
            raise InputError(
                f"{row['ansm']!r} is not in the thesaurus' index",
                file=file,
                line=number,
                field="ansm",
                way_out="Write the name as ansm_index.tsv has it.",
            )
        links.setdefault(row["inn"], set()).add(row["ansm"])
    return {inn: frozenset(names) for inn, names in links.items()}


def _rules(folder: Path) -> tuple[AnsmRule, ...]:
    reviewed = _reviewed(folder)
    rules = []
    for _, row in read_table(folder / "ansm_rules.tsv"):
        review = reviewed.get((row["a"], row["b"]))
        levels = row["levels"].split("|")
        level = review["level"] if review else min(levels, key=LEVELS.index)
        condition = review["reason"] if review else CONDITIONS[row["conditional"], len(levels) > 1]
        rules.append(AnsmRule(row["a"], row["b"], level, MECHANISMS.get(row["mechanism"], ""), condition))
    return tuple(rules)


def _reviewed(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The rules whose level was set by hand; a review of a rule that is not there would be lost in silence."""
    file = folder / "ansm_reviewed.tsv"
    known = {(row["a"], row["b"]) for _, row in read_table(folder / "ansm_rules.tsv")}
    reviewed = {}
    for number, row in read_table(file):
        if (row["a"], row["b"]) not in known:
            way_out = "Write both names as ansm_rules.tsv has them, in its order."
            raise InputError("there is no such rule", file=file, line=number, field="a, b", way_out=way_out)
        if row["level"] not in LEVELS:
            way_out = f"Write one of {', '.join(LEVELS)}."
            raise InputError(f"{row['level']!r} is no level", file=file, line=number, field="level", way_out=way_out)
        reviewed[row["a"], row["b"]] = row
    return reviewed
