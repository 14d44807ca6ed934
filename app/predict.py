"""`yaofang predict`: discharge drugs for a file of records, as a submission file.

yaofang predict --records records.jsonl --out submission.json --details details.jsonl
torchrun --nproc-per-node 4 -m yaofang.app.predict --records records.jsonl --out submission.json --model glm-4-9b

The surface only: the work is in `prediction_job`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from yaofang.decoding.settings import Settings

DEFAULT = Settings()


class Diagnoses(StrEnum):
    """Where the diagnoses of an answer come from."""

    auto = "auto"
    given = "given"
    generated = "generated"


class Strategy(StrEnum):
    """How a list is chosen."""

    greedy = "greedy"
    expected = "expected"


class Metric(StrEnum):
    """What `--strategy expected` optimises."""

    jaccard = "jaccard"
    f1 = "f1"


STRATEGY, METRIC = Strategy(DEFAULT.strategy), Metric(DEFAULT.metric)


class Quantize(StrEnum):
    """Weights in fewer bits, for a small card (extra `qlora`)."""

    eight = "8bit"
    four = "4bit"


RecordsOption = Annotated[Path, typer.Option(help="Records: JSON lines, a JSON array, or one JSON object.")]
OutOption = Annotated[Path, typer.Option(help="Submission file to write.")]
ModelOption = Annotated[
    list[Path] | None,
    typer.Option(help="Model or run folder; several (given again and again) vote. Default: the bundled model."),
]
VocabOption = Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")]
DiagnosesOption = Annotated[
    Diagnoses,
    typer.Option(help="auto: the record's own 出院诊断 where it has them; generated: never look at them."),
]
DetailsOption = Annotated[Path | None, typer.Option(help="Also write one Recommendation a line.")]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Records generated at once.")]
MaskPatientOption = Annotated[
    bool,
    typer.Option("--mask-patient", help="Keep drugs out that are contraindicated in the patient; else they are warned of."),
]
StrategyOption = Annotated[
    Strategy,
    typer.Option(help="greedy: the likeliest next drug; expected: the set that is best in expectation (slower)."),
]
SamplesOption = Annotated[int, typer.Option(help="Lists drawn a record for --strategy expected.")]
MetricOption = Annotated[Metric, typer.Option(help="What --strategy expected optimises.")]
SeedOption = Annotated[int, typer.Option(help="Of the drawn lists.")]
MinDrugsOption = Annotated[int, typer.Option(help="Least drugs a record, where conflicts leave so many.")]
MaxDrugsOption = Annotated[int, typer.Option(help="Most drugs a record.")]
FormularyOption = Annotated[Path | None, typer.Option(help="List of the only labels that may be prescribed (.json, .txt ...).")]
BanOption = Annotated[
    Path | None,
    typer.Option(help='JSON {"就诊标识": ["label", ...]}: labels kept out of a record\'s list (taken already, allergy).'),
]
DiagnosisListOption = Annotated[
    Path | None, typer.Option(help="List of the only names that generated diagnoses may have, such as ICD-10's.")
]
T2PenaltyOption = Annotated[
    float, typer.Option(help="Nats taken from a drug for each listed one that it has a T2 conflict with.")
]
PriorCorrectionOption = Annotated[
    float, typer.Option(help="Times log training frequency taken from each label, for rare drugs (0 to 1).")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the journal of a run that was stopped.")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
QuantizeOption = Annotated[Quantize | None, typer.Option(help="Load the weights in 8 or 4 bits.")]


def predict(
    records: RecordsOption,
    out: OutOption,
    model: ModelOption = None,
    vocab: VocabOption = None,
    diagnoses: DiagnosesOption = Diagnoses.auto,
    details: DetailsOption = None,
    batch_size: BatchSizeOption = 8,
    mask_patient: MaskPatientOption = False,
    strategy: StrategyOption = STRATEGY,
    samples: SamplesOption = DEFAULT.samples,
    metric: MetricOption = METRIC,
    seed: SeedOption = DEFAULT.seed,
    min_drugs: MinDrugsOption = DEFAULT.min_drugs,
    max_drugs: MaxDrugsOption = DEFAULT.max_drugs or 0,
    formulary: FormularyOption = None,
    ban: BanOption = None,
    diagnosis_list: DiagnosisListOption = None,
    t2_penalty: T2PenaltyOption = DEFAULT.t2_penalty,
    prior_correction: PriorCorrectionOption = DEFAULT.prior_correction,
    resume: ResumeOption = False,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
) -> None:
    """Recommend discharge drugs for every record of a file."""
    from yaofang.app.decoding_files import read_bans, read_diagnoses, read_list
    from yaofang.app.prediction_job import Job, run

    settings = Settings(
        diagnoses=diagnoses.value,
        strategy=strategy.value,
        samples=samples,
        metric=metric.value,
        seed=seed,
        min_drugs=min_drugs,
        max_drugs=max_drugs,
        mask_patient=mask_patient,
        formulary=None if formulary is None else read_list(formulary),
        banned={} if ban is None else read_bans(ban),
        diagnosis_names=None if diagnosis_list is None else read_diagnoses(diagnosis_list),
        t2_penalty=t2_penalty,
        prior_correction=prior_correction,
    )
    job = Job(records, out, tuple(model or ()), vocab, settings, details, batch_size, resume, skip_bad, device, dtype)
    run(replace(job, quantize=quantize.value if quantize else None))


if __name__ == "__main__":
    from yaofang.app.cli import main

    main(["predict", *sys.argv[1:]])
