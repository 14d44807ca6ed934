"""How lists are decoded: everything a user may choose, in one frozen object. Knows names and numbers; does no work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from yaofang.vocab.errors import InputError

Strategy = Literal["greedy", "expected"]
Metric = Literal["jaccard", "f1"]
Diagnoses = Literal["auto", "given", "generated"]


@dataclass(frozen=True)
class Settings:
    """Raises InputError for a value that makes no sense, naming its option of the command line."""

    diagnoses: Diagnoses = "auto"
    """`given` puts the record's 出院诊断 into the answer, `generated` has the model write them, `auto` gives where it can."""
    strategy: Strategy = "expected"
    """`greedy` writes the likeliest next drug; `expected` the set with the best expected metric under sampled lists."""
    samples: int = 24
    """Lists drawn for each record with `expected`."""
    metric: Metric = "jaccard"
    """What `expected` optimises."""
    seed: int = 0
    """Of the drawn lists; the same record and seed draw the same lists, whatever else is in the batch."""
    min_drugs: int = 1
    max_drugs: int | None = 30
    max_diagnosis_tokens: int = 256
    max_list_tokens: int = 256
    """The longest list known to us has 21 drugs, some 140 tokens."""
    audit: bool = True
    """Also report the labels that a conflict kept out."""
    mask_patient: bool = False
    """Keep drugs out that are contraindicated in the patient, instead of warning of them."""
    formulary: Sequence[str] | None = None
    """The only labels that may be listed; None allows the whole vocabulary."""
    banned: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """就诊标识 -> labels kept out of that record's list: what the patient takes already, or does not tolerate."""
    diagnosis_names: Sequence[str] | None = None
    """The only names that a generated diagnosis may have; None leaves them free text."""
    t2_penalty: float = 0.0
    """Nats taken from a drug for each listed one that it has a T2 conflict with."""
    prior_correction: float = 0.0
    """Times the log of a label's share in training that are taken from its logits, for the long tail."""

    def __post_init__(self) -> None:
        for name, kind in (("diagnoses", Diagnoses), ("strategy", Strategy), ("metric", Metric)):
            if getattr(self, name) not in get_args(kind):
                raise _bad(name, f"{getattr(self, name)!r} is unknown", f"Use {', '.join(get_args(kind))}.")
        for name in ("samples", "min_drugs", "max_diagnosis_tokens", "max_list_tokens"):
            if getattr(self, name) < 1:
                raise _bad(name, f"it is {getattr(self, name)}", "Use 1 or more.")
        if self.max_drugs is not None and self.max_drugs < self.min_drugs:
            raise _bad("max_drugs", f"it is {self.max_drugs}, below the least, {self.min_drugs}", "Use more.")
        for name in ("t2_penalty", "prior_correction"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise _bad(name, f"it is {getattr(self, name)}", "Use a finite number of 0 or more.")


def _bad(name: str, problem: str, way_out: str) -> InputError:
    return InputError(problem, field=f"--{name.replace('_', '-')}", way_out=way_out)
