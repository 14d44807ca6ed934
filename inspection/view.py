"""One record as its inspection shows it, on a page and on a terminal: text, diagnoses, drugs with what speaks for each, flags.

    viewer = Viewer(load_vocabulary())
    seen = viewer.view(record, recommendation, gold=record.drugs)
    seen.drugs[0].state      # wrong drugs first, then missed ones, then the rest in the order of the list

Knows records, Recommendations and tables; no model, no file, no markup. What the model itself leans on comes in as `Effects`
(`inspection.counterfactual`), if anybody has worked it out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from yaofang.data.answer import clean_diagnosis
from yaofang.data.facts import facts_of
from yaofang.data.recommendation import Blocked, Considered, Drug, KeptOut, Recommendation, Warning
from yaofang.data.records import Record
from yaofang.eval.diagnoses import plain
from yaofang.eval.metrics import jaccard
from yaofang.inspection.carriers import Carrier, Carriers, Flag, Knowledge
from yaofang.inspection.spans import KINDS, TEXTS, Mention, Reader
from yaofang.vocab import drugs
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.patient import PatientFacts

LEAST_NATS = 0.1
"""Effects below this are not shown."""
SHOWN = 5
"""Pieces of counterfactual evidence shown for a drug."""
State = Literal["wrong", "missed", "correct", "unjudged"]
STATES: Mapping[State, str] = {"wrong": "误列", "missed": "漏列", "correct": "正确", "unjudged": "未核对"}
"""In the order of the page. `unjudged`: there is no gold."""
DIAGNOSIS_STATES = {"missing": "漏诊", "extra": "多出", "matched": "一致", "given": "病历给出", "generated": "模型生成"}
STRENGTHS = {"first_line": "首选", "common": "常用", "adjunct": "辅助"}


class Piece(Protocol):
    """A piece of evidence, as `inspection.evidence.Piece`."""

    @property
    def section(self) -> str:
        """Name of the section."""

    @property
    def start(self) -> int:
        """First character, or place in the list of diagnoses."""

    @property
    def end(self) -> int:
        """After the last."""

    @property
    def added(self) -> bool:
        """A diagnosis that was put in instead of taken out."""

    @property
    def text(self) -> str:
        """The piece itself."""


class Effects(Protocol):
    """Effects of pieces on drugs, as `inspection.counterfactual.Counterfactual`."""

    @property
    def pieces(self) -> Sequence[Piece]:
        """The columns."""

    @property
    def drugs(self) -> Sequence[str]:
        """Labels: the rows."""

    @property
    def effect(self) -> Any:
        """[drugs, pieces] nats of log-odds."""

    @property
    def base(self) -> Any:
        """[drugs] `p_step` with the whole record."""

    @property
    def ranked(self) -> list[int]:
        """Columns that can be compared with one another."""


@dataclass(frozen=True, slots=True)
class Effect:
    """How the log-odds of a drug fall when a piece is taken out of the record, or rise when a diagnosis is put in."""

    section: str
    start: int
    end: int
    text: str
    nats: float
    p: float
    """`p_step` of the drug with the record as it is."""
    added: bool = False
    """The piece is a diagnosis that the record does not have."""

    @property
    def p_after(self) -> float:
        """And with the piece taken out, or put in: log-odds are additive."""
        odds = math.log(max(self.p, 1e-9)) - math.log(max(1 - self.p, 1e-9))
        return 1 / (1 + math.exp(-(odds + self.nats if self.added else odds - self.nats)))


@dataclass(frozen=True, slots=True)
class Carrying:
    """A diagnosis that carries a drug, and whether the record has it or only the model has written it."""

    carrier: Carrier
    is_extra: bool


@dataclass(frozen=True, slots=True)
class DrugView:
    """A listed drug, or a gold drug that is not listed."""

    key: str
    """Its mark in the text: the place in the list, or 漏1, 漏2 ..."""
    state: State
    label: str
    drug: drugs.Drug
    listed: Drug | None
    """As the Recommendation has it; None for a missed one."""
    p_include: float | None
    """Of a missed drug, where it was among those considered."""
    carrying: tuple[Carrying, ...]
    knowledge: Knowledge
    supports: tuple[Mention, ...]
    """Spans that name the drug or something that it is for; denied ones are there only if they name the drug."""
    kept_out_by: tuple[Blocked | KeptOut, ...]
    """Of a missed drug: what the mask did. A `KeptOut` bears the label of the drug that rules it out."""
    same_generic: tuple[str, ...]
    """Labels of the other side (gold or list) with the same generic: only the way of writing differs."""
    flags: tuple[Flag, ...]
    effects: tuple[Effect, ...]

    @property
    def warnings(self) -> tuple[Warning, ...]:
        """Conflicts and contraindications of a listed drug."""
        return self.listed.warnings if self.listed else ()

    @property
    def is_supported(self) -> bool:
        """Whether some span speaks for it."""
        return any(not mention.denied for mention in self.supports)


@dataclass(frozen=True, slots=True)
class DiagnosisView:
    """A diagnosis of the record, of the model, or of both."""

    name: str
    state: str
    """Key of `DIAGNOSIS_STATES`."""
    recognised: tuple[str, ...]
    """Names in diagnoses.tsv; none is `no data`."""
    carries: tuple[str, ...]
    """Labels of the list."""
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class RecordView:
    """All that is shown of one record."""

    record: Record
    found: Recommendation
    gold: tuple[str, ...] | None
    jaccard: float | None
    facts: PatientFacts
    diagnoses: tuple[DiagnosisView, ...]
    drugs: tuple[DrugView, ...]
    considered: tuple[Considered, ...]
    has_effects: bool

    @property
    def sections(self) -> list[tuple[str, str]]:
        """The texts that are not blank, under their names."""
        return [(name, text) for name, text_of in TEXTS.items() if (text := text_of(self.record)).strip()]

    @property
    def flags(self) -> list[Flag]:
        """Every flag, of drugs first."""
        of_drugs = [flag for drug in self.drugs for flag in drug.flags]
        return of_drugs + [flag for diagnosis in self.diagnoses for flag in diagnosis.flags]

    def count(self, state: State) -> int:
        """Number of drugs in a state."""
        return sum(drug.state == state for drug in self.drugs)


class Viewer:
    """Builds views; keeps what it has looked up in the tables from one record to the next."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._carriers = Carriers(vocabulary)
        self._reader = Reader(self._carriers.tables)

    def view(
        self,
        record: Record,
        found: Recommendation,
        *,
        gold: Collection[str] | None = None,
        effects: Effects | None = None,
    ) -> RecordView:
        """The view of one record. `gold` None: nobody knows what was prescribed; an empty one says that nothing was."""
        own, extra = _own_and_extra(record, found)
        case = _Case(found, tuple(dict.fromkeys(gold)) if gold is not None else None, own, extra, self._reader.read(record))
        shown = sorted(self._drugs(case, effects), key=lambda drug: list(STATES).index(drug.state))
        return RecordView(
            record=record,
            found=found,
            gold=case.gold,
            jaccard=None if case.gold is None else jaccard(set(case.gold), set(found.labels)),
            facts=facts_of(record),
            diagnoses=self._diagnoses(record, case),
            drugs=tuple(shown),
            considered=tuple(one for one in found.considered if one.label not in found.labels),
            has_effects=effects is not None,
        )

    def _drugs(self, case: _Case, effects: Effects | None) -> list[DrugView]:
        gold, labels = case.gold, case.found.labels
        missed = [label for label in gold or () if label not in labels]
        views = []
        for place, listed in enumerate(case.found.drugs, 1):
            state: State = "unjudged" if gold is None else "correct" if listed.label in gold else "wrong"
            others = missed if state == "wrong" else ()
            views.append(self._drug(case, str(place), state, listed.label, others, listed, _shown(effects, listed.label)))
        wrong = [label for label in labels if gold is not None and label not in gold]
        for place, label in enumerate(missed, 1):
            views.append(self._drug(case, f"漏{place}", "missed", label, wrong, None, ()))
        return views

    def _drug(
        self,
        case: _Case,
        key: str,
        state: State,
        label: str,
        others: Sequence[str],
        listed: Drug | None,
        effects: tuple[Effect, ...],
    ) -> DrugView:
        drug = self._carriers.drug(label)
        carried = self._carriers.of(drug, (*case.own, *case.extra))
        supports = self._supports(drug, case.mentions)
        is_supported = any(not mention.denied for mention in supports)
        flag = self._carriers.unindicated(drug, case.own, is_supported=is_supported) if listed else None
        return DrugView(
            key=key,
            state=state,
            label=label,
            drug=drug,
            listed=listed,
            p_include=listed.p_include if listed else case.considered(label),
            carrying=tuple(Carrying(one, one.diagnosis in case.extra) for one in carried),
            knowledge="carried" if carried else self._carriers.knowledge(drug, case.own),
            supports=supports,
            kept_out_by=() if listed else case.kept_out_by(label),
            same_generic=tuple(other for other in others if self._carriers.drug(other).generic == drug.generic),
            flags=(flag,) if flag else (),
            effects=effects,
        )

    def _supports(self, drug: drugs.Drug, mentions: Sequence[Mention]) -> tuple[Mention, ...]:
        """The mentions of the drug itself, and those, not denied, of anything that the tables say it is for."""
        indications = self._carriers.indications(drug)
        fitting = (
            mention
            for mention in mentions
            if (drug.generic in mention.names if mention.kind == "drug" else _is_for(mention, indications))
        )
        return tuple(sorted(fitting, key=lambda mention: KINDS.index(mention.kind)))

    def _diagnoses(self, record: Record, case: _Case) -> tuple[DiagnosisView, ...]:
        listed = [self._carriers.drug(label) for label in case.found.labels]
        flags = self._carriers.untreated(case.own, listed)
        if case.gold is not None and not any(drug.kind in drugs.UNKNOWN for drug in self._known(case.gold)):
            known = {(flag.subject, flag.reason) for flag in self._carriers.untreated(case.own, self._known(case.gold))}
            flags = tuple(_beside_gold(flag, (flag.subject, flag.reason) in known) for flag in flags)
        return tuple(
            DiagnosisView(
                name=name,
                state=state,
                recognised=self._carriers.recognise(name),
                carries=tuple(drug.label for drug in listed if self._carriers.of(drug, (name,))),
                flags=tuple(flag for flag in flags if flag.subject == name),
            )
            for name, state in dict.fromkeys(_diagnosis_states(record, case))
        )

    def _known(self, labels: Sequence[str]) -> list[drugs.Drug]:
        return [self._carriers.drug(label) for label in labels]


@dataclass(frozen=True)
class _Case:
    """What is asked of every drug of one record."""

    found: Recommendation
    gold: tuple[str, ...] | None
    own: tuple[str, ...]
    """Diagnoses of the record; of the model where the record has none."""
    extra: tuple[str, ...]
    """Diagnoses that only the model has written."""
    mentions: tuple[Mention, ...]

    def considered(self, label: str) -> float | None:
        return next((one.p_include for one in self.found.considered if one.label == label), None)

    def kept_out_by(self, label: str) -> tuple[Blocked | KeptOut, ...]:
        """What the audit trail says of a label that is not listed: blocked with a probability, or ruled out by a drug."""
        blocked = [one for one in self.found.blocked if one.label == label]
        by = {one.by for one in blocked}
        ruled = [
            KeptOut(drug.label, one.tier)
            for drug in self.found.drugs
            for one in drug.kept_out
            if one.label == label and drug.label not in by
        ]
        return (*blocked, *ruled)


def _own_and_extra(record: Record, found: Recommendation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    written = tuple(diagnosis.name for diagnosis in found.diagnoses)
    if not record.diagnoses:
        return written, ()
    known = {plain(clean_diagnosis(name)) for name in record.diagnoses}
    return record.diagnoses, tuple(name for name in written if plain(clean_diagnosis(name)) not in known)


def _diagnosis_states(record: Record, case: _Case) -> list[tuple[str, str]]:
    """(name, state), those that differ first. Names are compared as `eval.diagnoses.plain`; the record's wording is shown."""
    generated = [one.name for one in case.found.diagnoses if one.source == "generated"]
    given = [(one.name, "given") for one in case.found.diagnoses if one.source == "given"]
    if not record.diagnoses:
        return [*given, *((name, "generated") for name in generated)]
    own = {plain(clean_diagnosis(name)): name for name in reversed(record.diagnoses)}
    given = [(own.get(plain(clean_diagnosis(name)), name), state) for name, state in given]
    written = {plain(clean_diagnosis(one.name)) for one in case.found.diagnoses}
    missing = [(name, "missing") for name in record.diagnoses if plain(clean_diagnosis(name)) not in written]
    extra = [(name, "extra") for name in generated if name in case.extra]
    matched = [(own[plain(clean_diagnosis(name))], "matched") for name in generated if name not in case.extra]
    return [*missing, *extra, *given, *matched]


def _is_for(mention: Mention, indications: Mapping[str, Any]) -> bool:
    return not mention.denied and any(name in indications for name in mention.names)


def _beside_gold(flag: Flag, is_in_gold: bool) -> Flag:
    said = "实际出院带药中也没有。" if is_in_gold else "实际出院带药中有。"
    return Flag(flag.kind, flag.subject, flag.reason + said)


def _shown(effects: Effects | None, label: str) -> tuple[Effect, ...]:
    """The strongest pieces of evidence for and against a drug, by size."""
    if effects is None or label not in effects.drugs:
        return ()
    drug = list(effects.drugs).index(label)
    row, p = effects.effect[drug], float(effects.base[drug])
    strong = sorted((at for at in effects.ranked if abs(row[at]) >= LEAST_NATS), key=lambda at: -abs(row[at]))
    asked = [at for at, piece in enumerate(effects.pieces) if piece.added]
    pieces = ((effects.pieces[at], float(row[at])) for at in (*strong[:SHOWN], *asked))
    return tuple(Effect(one.section, one.start, one.end, one.text, nats, p, one.added) for one, nats in pieces)
