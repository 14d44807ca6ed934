"""The one object that predict, inspection, the page and the API exchange. Only added to, never changed.

A `Recommendation` is the outcome for one record. Its JSON form is published as `data/schemas/recommendation.schema.json`.
It knows nothing of models or tokens' texts; every probability is in [0, 1].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = "yaofang.recommendation/1"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A discharge diagnosis: `given` by the record or `generated` by the model."""

    name: str
    source: Literal["given", "generated"]


@dataclass(frozen=True, slots=True)
class KeptOut:
    """A label that a listed drug rules out, with the tier (`T1`) that does so."""

    label: str
    tier: str


@dataclass(frozen=True, slots=True)
class Warning:
    """A note on a listed drug, such as a T2 interaction with another one, or a contraindication by a diagnosis."""

    kind: str
    """`interaction` with another listed drug, or `patient`: something about this patient."""
    tier: str
    """Of a `patient` warning: T1 contraindicated, T2 with care."""
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Drug:
    """One drug of the list, in the order in which the model wrote it."""

    label: str
    generic: str
    atc: str
    """WHO ATC code; `~A10BX` is a provisional class of a drug that WHO gives no code; empty if none."""
    p_step: float
    """Conditional probability of this drug at its place in the list, among what was allowed there."""
    p_include: float | None
    """Probability that the drug belongs in the list; None where it was not estimated."""
    masked_mass: float
    """Probability mass that the mask took away while the name was written: 1 - product over its tokens of what was allowed."""
    kept_out: tuple[KeptOut, ...] = ()
    warnings: tuple[Warning, ...] = ()


@dataclass(frozen=True, slots=True)
class Blocked:
    """A label that the model would have considered, kept out by the listed drug `by`."""

    label: str
    by: str
    tier: str
    p_step: float
    """Probability the label would have had at that place if no conflict had been masked."""


@dataclass(frozen=True, slots=True)
class Considered:
    """A label that is not listed, with the probability that it belongs in the list."""

    label: str
    p_include: float


@dataclass(frozen=True, slots=True)
class Cut:
    """How many tokens of a section of the record did not fit."""

    section: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Diagnoses and drugs for one record, with the reasons for what is not in it."""

    id: str
    diagnoses: tuple[Diagnosis, ...]
    drugs: tuple[Drug, ...]
    blocked: tuple[Blocked, ...] = ()
    considered: tuple[Considered, ...] = ()
    """Labels not listed whose `p_include` is at least 0.001, likeliest first; empty where it was not estimated."""
    cuts: tuple[Cut, ...] = ()
    truncated: bool = False
    """The list ended because the token budget did, not because the model ended it. Only whole drugs are in it."""
    below_minimum: bool = False
    """The list is shorter than the least number of drugs that was asked for: conflicts and bans left nothing more."""
    tokens: int = 0
    """Tokens of the prompt."""
    seconds: float = 0.0
    """Spent on this record: of what records of a batch had in common an equal share, so that they sum to the whole time."""
    versions: dict[str, str] = field(default_factory=dict)
    """Keys `model`, `vocab`, `conflicts`, `code`; `calibration` where `p_include` is calibrated."""
    schema: str = SCHEMA

    @property
    def labels(self) -> list[str]:
        """The drugs' labels, as a submission wants them."""
        return [drug.label for drug in self.drugs]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recommendation:
        """Rebuild from `to_json`. Unknown keys, written by a later version, are left out. Raises KeyError on a missing one."""
        return cls(
            id=value["id"],
            diagnoses=tuple(Diagnosis(d["name"], d["source"]) for d in value["diagnoses"]),
            drugs=tuple(_drug(d) for d in value["drugs"]),
            blocked=tuple(Blocked(b["label"], b["by"], b["tier"], b["p_step"]) for b in value["blocked"]),
            considered=tuple(Considered(c["label"], c["p_include"]) for c in value.get("considered", ())),
            cuts=tuple(Cut(c["section"], c["tokens"]) for c in value["cuts"]),
            truncated=value["truncated"],
            below_minimum=bool(value.get("below_minimum", False)),
            tokens=value["tokens"],
            seconds=value["seconds"],
            versions=dict(value["versions"]),
            schema=value["schema"],
        )


def _drug(value: dict[str, Any]) -> Drug:
    return Drug(
        label=value["label"],
        generic=value["generic"],
        atc=value["atc"],
        p_step=value["p_step"],
        p_include=value["p_include"],
        masked_mass=value["masked_mass"],
        kept_out=tuple(KeptOut(k["label"], k["tier"]) for k in value["kept_out"]),
        warnings=tuple(Warning(w["kind"], w["tier"], w["text"], w["source"]) for w in value["warnings"]),
    )
