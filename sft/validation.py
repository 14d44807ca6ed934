"""Validation while training: the weights as they stand write lists under the real constraint, and the best ones are kept.

The figure is the mean Jaccard over the validation records, their diagnoses given where they have them, the likeliest drug
taken at each place: sampled lists would cost many times as much. It knows no files and builds no trainer.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from trl import SFTTrainer

from yaofang.data.records import Record
from yaofang.decoding.recommender import Recommender
from yaofang.eval.metrics import jaccard
from yaofang.glm.loading import LoadedModel
from yaofang.glm.template import ChatTemplate
from yaofang.sft import ranks
from yaofang.sft.parts import Recipe
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

log = logging.getLogger(__name__)
METRIC = "eval_jaccard"
BATCH = 16
"""Records decoded at once."""


def hold_out(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """(records to train on, records held out), no patient in both: `share` of the patients, one at least, by 患者序号.

    The same patients whatever the order of the records and the seed of the training. Raises InputError if none is left.
    """
    patients = sorted({record.patient for record in records})
    random.Random(0).shuffle(patients)
    out = set(patients[: max(1, round(share * len(patients)))])
    kept = [record for record in records if record.patient not in out]
    if not kept:
        problem = f"{len(patients)} patients: none is left to train on"
        raise InputError(problem, field="validation.share", way_out="Give more patients, or validation.records.")
    return kept, [record for record in records if record.patient in out]


def check_apart(training: Sequence[Record], validation: Sequence[Record]) -> None:
    """Refuse a record that stands in both. Patients with one number are only warned of: two files may count from 1 each."""
    known = {record.model_dump_json() for record in training}
    both = next((record.id for record in validation if record.model_dump_json() in known), None)
    if both is not None:
        way_out = "Give records of other patients: yaofang data split makes such files."
        raise InputError(f"record {both} is trained on too", field="validation.records", way_out=way_out)
    shared = {record.patient for record in training} & {record.patient for record in validation}
    if shared:
        log.warning("%d numbers of patients stand in the training and the validation records", len(shared))


def some_of(records: Sequence[Record], limit: int) -> list[Record]:
    """At most `limit` of the records, the same ones each time, in their order. Records without drugs are left out."""
    listed = [place for place, record in enumerate(records) if record.drugs]
    if not listed:
        problem = "no validation record has drugs"
        raise InputError(problem, field="validation", way_out="Give records with 出院带药列表.")
    taken = random.Random(0).sample(listed, min(limit, len(listed)))
    return [records[place] for place in sorted(taken)]


class Validator:
    """Decodes the validation records with a model in training. Raises InputError for a record that does not fit it."""

    def __init__(self, records: Sequence[Record], loaded: LoadedModel, vocabulary: Vocabulary, *, together: bool) -> None:
        """`together`: all processes must run the same forwards (ZeRO-3); else each takes its share of the records."""
        self.records = list(records)
        self.together = together
        conflicts = load_conflicts(vocabulary)
        self.recommender = Recommender([loaded], vocabulary, conflicts, strategy="greedy", audit=False)
        for record in self.records:
            self.recommender.prepare(record)

    def __call__(self) -> float:
        """Mean Jaccard over the records, the same number in every process."""
        share = slice(None) if self.together else slice(ranks.rank(), None, ranks.world())
        mine = self.records[share]
        found = self.recommender.batch(mine, BATCH)
        scores = [jaccard(set(one.drugs), {drug.label for drug in said.drugs}) for one, said in zip(mine, found, strict=True)]
        if not self.together:
            # Summed in the order of the records, so that the number of processes does not change the last bit.
            shares = ranks.gathered(scores)
            scores = [shares[place % len(shares)][place // len(shares)] for place in range(len(self.records))]
        return sum(scores) / len(scores)


def in_training(model: Any, template: ChatTemplate, device: torch.device, recipe: Recipe, prompt_tokens: int) -> LoadedModel:
    """A model that is being trained, as decoding wants it."""
    return LoadedModel(
        model=model,
        template=template,
        name="training",
        version="training",
        device=device,
        dtype=next(weight.dtype for weight in model.parameters() if weight.is_floating_point()),
        reasons=("as it is trained",),
        context=int(model.config.max_position_embeddings),
        prompt_tokens=prompt_tokens,
        prefix_lm=recipe.model.prefix_lm,
        answer=recipe.data.answer,
    )


class ValidatingTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer; with a `validator` its evaluation is the Jaccard under constrained decoding."""

    control: Any
    validator: Validator | None = None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The metrics `eval_jaccard`, `eval_records` and `eval_runtime` (seconds), logged; or the trainer's own."""
        if self.validator is None:
            own: dict[str, float] = super().evaluate(*args, **kwargs)
            return own
        begun = time.perf_counter()
        self.model.eval()  # the next step of training turns it back
        with torch.no_grad(), self.accelerator.autocast():
            value = self.validator()
        records, seconds = len(self.validator.records), time.perf_counter() - begun
        metrics = {METRIC: value, "eval_records": float(records), "eval_runtime": round(seconds, 3)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Validate(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Asks for a validation every `every` steps and at the end, for a checkpoint where it was the best, and for the end
    after `patience` validations without a better one."""

    def __init__(self, every: int, patience: int | None) -> None:
        self.every = every
        self.patience = patience

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by the trainer after every step."""
        control.should_evaluate = state.global_step % self.every == 0 or control.should_training_stop
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by the trainer after a validation, whose figures are the last of the log."""
        said = curve_of(state)
        (step, value), (best_step, best) = said[-1], best_of(said)
        log.info("step %d: Jaccard %.4f; best %.4f at step %d", step, value, best, best_step)
        ended = exhausted(state, self.patience)
        control.should_training_stop = control.should_training_stop or ended
        control.should_save = control.should_save or ended or best_of(said) == said[-1]
        return control


def curve_of(state: Any) -> list[tuple[int, float]]:
    """(step, Jaccard) of each validation in the log of a trainer's state."""
    return [(row["step"], row[METRIC]) for row in state.log_history if METRIC in row]


def best_of(curve: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The validation with the highest Jaccard, the first of equals."""
    return max(curve, key=lambda point: point[1])


def exhausted(state: Any, patience: int | None) -> bool:
    """Whether the last `patience` validations brought nothing better."""
    curve = curve_of(state)
    if patience is None or not curve:
        return False
    return len(curve) - 1 - curve.index(best_of(curve)) >= patience


def result_of(state: Any, records: int) -> dict[str, Any]:
    """What `run.json` says of the validations: the step whose weights the run folder holds, its Jaccard, and the curve."""
    curve = curve_of(state)
    step, value = best_of(curve)
    points = [{"step": at, "jaccard": found} for at, found in curve]
    return {"metric": "jaccard", "step": step, "jaccard": value, "records": records, "curve": points}
