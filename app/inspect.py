"""`yaofang inspect`: why each drug is there, as people read it: a report of many records, or one record on the terminal.

    yaofang inspect --records records.jsonl --predictions details.jsonl --out report.html
    yaofang inspect --records records.jsonl --record 12-1
    yaofang inspect --records records.jsonl --out report.html --counterfactuals --limit 20

Knows options and files; what is shown is `yaofang.inspection`'s. Without --predictions a model recommends first. The
report holds the records' text: it is kept as records are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yaofang.data.recommendation import Recommendation
    from yaofang.data.records import Record
    from yaofang.decoding.recommender import Recommender
    from yaofang.inspection.counterfactual import Counterfactual
    from yaofang.inspection.view import DrugView, RecordView, Viewer

SAME_P = 0.02
"""Two readings of one list by one model differ by less: only rounding lies between them."""
KEPT_SHOWN = 4
"""Labels named of those that a drug keeps out; their number is told."""
DRUG_COLUMNS = ("核对", "", "药品", "条件概率", "入选概率", "支持它的诊断", "文字依据", "提示")


def inspect(
    records: Annotated[Path, typer.Option(help="Records: JSON lines, a JSON array, or one JSON object.")],
    out: Annotated[Path | None, typer.Option(help="Report to write, .html; above 50 records an index with a folder.")] = None,
    record: Annotated[str | None, typer.Option(help="就诊标识 of the one record to show on the terminal.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="What predict wrote with --details. Without it the model recommends first.")
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(help="Gold of another shape, {ID: [names]}, in place of the records' own drugs.")
    ] = None,
    counterfactuals: Annotated[
        bool, typer.Option("--counterfactuals", help="Also work out which piece of the record each drug hangs on (slow).")
    ] = False,
    put_in: Annotated[
        list[str] | None, typer.Option("--put-in", help="Also work out what this diagnosis would change, if the record had it.")
    ] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="Model or run folder; several vote. Default: the bundled model.")
    ] = None,
    vocab: Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first records of the file.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Records, or variants of one, read at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")] = False,
) -> None:
    """Show why each drug is there: diagnoses, spans of the text, probabilities, conflicts, flags, and what was missed."""
    from yaofang.app.tables import say
    from yaofang.inspection.site import check_target, write_report

    if out is None and record is None:
        raise _nothing_asked()
    chosen, golds = _read(records, gold, record, limit, skip_bad)
    if out is not None:
        check_target(out, len(chosen))
    job = _Job(
        records,
        predictions,
        tuple(model or ()),
        vocab,
        batch_size,
        device,
        counterfactuals or bool(put_in),
        tuple(put_in or ()),
    )
    views = job.views(chosen, golds)
    if record is not None:
        shown = list(views)
        print_view(shown[0])
        views = iter(shown)
    if out is not None:
        written = write_report(out, views, count=len(chosen), about=job.about(len(chosen)))
        say(
            f"{'、'.join(map(str, written))}: {len(chosen)} records; they hold the records' text, keep them as records are kept"
        )


def _nothing_asked() -> Exception:
    from yaofang.vocab.errors import InputError

    return InputError("nothing to show", field="--out", way_out="Give --out report.html, or --record ID for the terminal.")


def _read(
    file: Path, gold: Path | None, record: str | None, limit: int | None, skip_bad: bool
) -> tuple[list[Record], dict[str, Sequence[str] | None]]:
    """The records asked for, and what was prescribed in each; None where the file does not say."""
    from yaofang.app.input_files import good_records, say_skipped
    from yaofang.eval.reading import gold_of, read_gold
    from yaofang.vocab.errors import InputError

    skip = say_skipped if skip_bad else None
    found = good_records(file, skip_bad)
    stated = None if gold is None else gold_of(found, read_gold(gold, skip), skip)
    chosen = [one for one in found if record in (None, one.id)][:limit]
    if not chosen:
        problem = "there is no record in the file" if record is None else f"no record has 就诊标识 {record}"
        raise InputError(problem, file=file, field="--record", way_out="Look at the IDs in the file.")
    if stated is None:
        return chosen, {one.id: one.drugs or None for one in chosen}
    return chosen, {one.id: stated.get(one.id) for one in chosen}


@dataclass
class _Job:
    """Where the Recommendations come from, and what is worked out beside them."""

    file: Path
    predictions: Path | None
    models: tuple[Path, ...]
    vocab: Path | None
    batch_size: int
    device: str
    counterfactuals: bool
    put_in: tuple[str, ...]

    def __post_init__(self) -> None:
        from yaofang.inspection.view import Viewer
        from yaofang.vocab.drugs import load_vocabulary

        self.vocabulary = load_vocabulary(self.vocab)
        self.viewer: Viewer = Viewer(self.vocabulary)
        self.versions: Mapping[str, str] = {}

    def views(self, chosen: Sequence[Record], golds: Mapping[str, Sequence[str] | None]) -> Iterator[RecordView]:
        """The records' views in the order of the file, each made when it is asked for. Raises InputError before the first."""
        given = None if self.predictions is None else self._given(self.predictions, chosen)
        recommender = self._recommender() if given is None or self.counterfactuals else None
        if given is not None and recommender is not None:
            self._check_model(recommender, given)
        found = given or self._recommended(recommender, chosen)
        self.versions = next(iter(found.values())).versions
        return self._views(recommender, chosen, found, golds)

    def about(self, count: int) -> dict[str, str]:
        """What the foot of every page says of the report."""
        from datetime import UTC, datetime

        from yaofang import __version__

        names = {"model": "模型", "vocab": "词表", "conflicts": "冲突表", "calibration": "校准"}
        versions = {names[key]: value for key, value in self.versions.items() if key in names}
        return {"病历数": str(count), **versions, "程序": __version__, "生成于": datetime.now(UTC).strftime("%Y-%m-%d")}

    def _given(self, file: Path, chosen: Sequence[Record]) -> dict[str, Recommendation]:
        from yaofang.eval.reading import read_details
        from yaofang.vocab.errors import InputError

        details = read_details(file)
        if lacking := [one.id for one in chosen if one.id not in details]:
            problem = f"{len(lacking)} records have no recommendation there, such as {lacking[0]}"
            raise InputError(problem, file=file, field="id", way_out="Give the details of the same records.")
        return {one.id: details[one.id] for one in chosen}

    def _recommender(self) -> Recommender:
        from transformers.utils.logging import disable_progress_bar

        from yaofang.decoding.recommender import Recommender

        disable_progress_bar()
        return Recommender.from_pretrained(self.models or None, self.vocab, device=self.device)

    def _check_model(self, recommender: Recommender, given: Mapping[str, Recommendation]) -> None:
        """Effects of another model than the one that wrote the lists would explain nothing."""
        from yaofang.vocab.errors import InputError

        for one in given.values():
            if (wrote := one.versions.get("model")) not in (None, recommender.versions["model"]):
                problem = f"its lists are of model {wrote}, the model here is {recommender.versions['model']}"
                raise InputError(
                    problem, file=self.predictions, field="--model", way_out="Give --model the folder of that model."
                )

    def _effects(self, recommender: Recommender, record: Record, found: Recommendation) -> Counterfactual:
        from yaofang.inspection.counterfactual import counterfactual
        from yaofang.inspection.evidence import added_diagnosis, pieces

        diagnoses = tuple(one.name for one in found.diagnoses if one.name.strip())
        new = [added_diagnosis(record, name) for name in self.put_in if name not in record.diagnoses]
        evidence = [*pieces(record, diagnoses), *new]
        return counterfactual(recommender, record, found, evidence=evidence, batch_size=self.batch_size)

    def _check_probabilities(self, given: Recommendation, effects: Counterfactual) -> None:
        """Lists that were written with other settings (a formulary, bans, leanings) have other probabilities."""
        from yaofang.vocab.errors import InputError

        p_step = {drug.label: drug.p_step for drug in given.drugs}
        if any(abs(p_step[label] - p) > SAME_P for label, p in zip(effects.drugs, effects.base, strict=True)):
            problem = f"record {given.id}: its probabilities are not those of this model with default settings"
            way_out = "Leave --predictions out, or predict with default settings."
            raise InputError(problem, file=self.predictions, field="--counterfactuals", way_out=way_out)

    def _recommended(self, recommender: Recommender | None, chosen: Sequence[Record]) -> dict[str, Recommendation]:
        from yaofang.app.progress import progress

        assert recommender is not None  # only given lists do without one
        found: dict[str, Recommendation] = {}
        with progress("recommend", len(chosen)) as advance:
            for _, one in recommender.completed(chosen, self.batch_size):
                found[one.id] = one
                advance(1)
        return found

    def _views(
        self,
        recommender: Recommender | None,
        chosen: Sequence[Record],
        found: Mapping[str, Recommendation],
        golds: Mapping[str, Sequence[str] | None],
    ) -> Iterator[RecordView]:
        from yaofang.app.progress import progress

        with progress("inspect", len(chosen)) as advance:
            for one in chosen:
                effects = None
                if self.counterfactuals and recommender is not None and found[one.id].drugs:
                    effects = self._effects(recommender, one, found[one.id])
                    self._check_probabilities(found[one.id], effects)
                yield self.viewer.view(one, found[one.id], gold=golds[one.id], effects=effects)
                advance(1)


def print_view(view: RecordView) -> None:
    """Tables of diagnoses, drugs, evidence of the model and flags, and the sentence that this is no prescription."""
    from yaofang.app.tables import show
    from yaofang.data.answer import clean_diagnosis
    from yaofang.inspection.page import NO_DATA_NOTE, RESEARCH_ONLY
    from yaofang.inspection.view import DIAGNOSIS_STATES

    score = "没有实际出院带药可核对" if view.jaccard is None else f"Jaccard {view.jaccard:.3f}"
    diagnoses = [
        (clean_diagnosis(one.name), DIAGNOSIS_STATES[one.state], _carried(one.carries, one.recognised))
        for one in view.diagnoses
    ]
    show(f"就诊标识 {view.record.id}　{score}", ("出院诊断", "来源", "清单中的药品"), diagnoses, as_json=False, data=None)
    show("\n出院带药", DRUG_COLUMNS, [_drug_row(drug) for drug in view.drugs], as_json=False, data=None)
    effects = [
        (
            drug.label,
            f"{one.nats:+.2f}",
            f"{one.p:.3f} → {one.p_after:.3f}",
            "加上诊断" if one.added else one.section,
            one.text.strip(),
        )
        for drug in view.drugs
        for one in drug.effects
    ]
    if effects:
        show(
            "\n模型依据（反事实）", ("药品", "nats", "条件概率", "部分", "去掉或加上的文字"), effects, as_json=False, data=None
        )
    if view.found.blocked:
        blocked = [(one.label, one.by, one.tier, one.p_step) for one in view.found.blocked]
        show("\n被排除", ("药品", "因已列出", "级别", "条件概率"), blocked, as_json=False, data=None)
    keeping = [
        (one.label, len(one.listed.kept_out), "、".join(kept.label for kept in one.listed.kept_out[:KEPT_SHOWN]))
        for one in view.drugs
        if one.listed and one.listed.kept_out
    ]
    if keeping:
        show("\n它所排除", ("药品", "个数", "其中"), keeping, as_json=False, data=None)
    if view.flags:
        flags = [(flag.kind, clean_diagnosis(flag.subject), clean_diagnosis(flag.reason)) for flag in view.flags]
        show("\n提示", ("提示", "对象", "理由"), flags, as_json=False, data=None)
    typer.echo("\n病历（⟦⟧内是支持某药的文字，其后括号里是药的编号）")
    for section, text in view.sections:
        typer.echo(f"{section}：{_marked(view, section, text)}")
    for line in ("", NO_DATA_NOTE, RESEARCH_ONLY):
        typer.echo(line)


def _marked(view: RecordView, section: str, text: str) -> str:
    """A section with the spans that speak for a drug marked; of spans that overlap the first one."""
    keys: dict[tuple[int, int], list[str]] = {}
    for drug in view.drugs:
        for span in drug.supports:
            if span.section == section and not span.denied:
                keys.setdefault((span.start, span.end), []).append(drug.key)
    parts, place = [], 0
    for start, end in sorted(keys):
        if start >= place:
            parts += [text[place:start], f"⟦{text[start:end]}⟧({'、'.join(dict.fromkeys(keys[start, end]))})"]
            place = end
    return "".join(parts) + text[place:]


def _carried(labels: Sequence[str], recognised: Sequence[str]) -> str:
    return "、".join(labels) or ("" if recognised else "无数据")


def _drug_row(drug: DrugView) -> tuple[str, str, str, float | None, float | None, str, str, str]:
    """What belongs in `DRUG_COLUMNS`."""
    from yaofang.data.answer import clean_diagnosis
    from yaofang.inspection.view import STATES

    words = {"carried": "", "uncarried": "本例诊断中没有", "no_data": "无数据"}
    diagnoses = "、".join(clean_diagnosis(one.carrier.diagnosis) for one in drug.carrying) or words[drug.knowledge]
    spans = dict.fromkeys(mention.text for mention in drug.supports if not mention.denied)
    notes = [flag.kind for flag in drug.flags] + [f"[{warning.tier}] {warning.text}" for warning in drug.warnings]
    p_step = drug.listed.p_step if drug.listed else None
    return (
        STATES[drug.state],
        drug.key,
        drug.label,
        p_step,
        drug.p_include,
        diagnoses,
        "、".join(list(spans)[:6]),
        "；".join(notes),
    )
