"""Supervised fine-tuning with TRL's SFTTrainer, from a recipe to a run folder that `yaofang predict --model RUN` loads."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import SFTTrainer

from yaofang.data.answer import drug_frequency
from yaofang.data.provenance import provenance
from yaofang.data.records import Record, read_records
from yaofang.decoding.processors import answer_ids
from yaofang.glm.loading import TRAINED
from yaofang.sft import ranks
from yaofang.sft.build import build_trainer, training_arguments
from yaofang.sft.checkpoints import copy_weights, folder_of, state_of, step_of, whole_checkpoints
from yaofang.sft.examples import prompt_budget
from yaofang.sft.objective import objective_of
from yaofang.sft.parts import Recipe
from yaofang.sft.plan_examples import PlannedRun, plan_examples
from yaofang.sft.run_folder import check_data, data_hash, name_base, open_folder, trained_on, write_start
from yaofang.sft.sources import Sources, examples_of, read_sources
from yaofang.sft.start import Start, start_from
from yaofang.sft.validation import (
    Validator,
    check_apart,
    exhausted,
    hold_out,
    in_training,
    result_of,
    some_of,
)
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.files import sha256_of, whole_file

log = logging.getLogger(__name__)


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, skip_bad: bool = False, command: str = "yaofang sft"
) -> dict[str, Any]:
    """Run the recipe and write the run folder `out`; returns the final metrics. Under torchrun every process calls it.

    With a part `validation` the folder holds the best weights, else the last ones. Raises InputError for bad data, a label
    outside the vocabulary, or a run folder that is already there. With `skip_bad` records that cannot be trained on are left
    out and listed in the log.
    """
    with ranks.joined():
        checkpoint = ranks.from_first(lambda: open_folder(recipe, out, resume))
        args = training_arguments(recipe, out)
        vocabulary = load_vocabulary(recipe.data.vocabulary)
        sources, validation = split_sources(recipe, vocabulary, skip_bad)
        versions = {"training set": sources.version, "validation set": data_hash(validation), "vocabulary": vocabulary.version}
        ranks.from_first(lambda: check_data(out, versions))
        start = start_from(recipe, sources.records, vocabulary, sources.texts)
        planned, cut = make_examples(recipe, sources, start)
        counts = drug_frequency(sources.records)
        objective = objective_of(recipe, start.template, vocabulary, counts, planned.examples)
        args.num_train_epochs = planned.epochs
        trainer = build_trainer(recipe, start, planned.examples, args, objective=objective, shuffle=planned.shuffle)
        trainer.validator = _validator(recipe, validation, trainer, start, vocabulary)
        ranks.from_first(lambda: write_start(recipe, versions, out))
        metrics = _run(recipe, trainer, checkpoint)
        metrics |= {"records": len(sources.records), "conversations": len(sources.conversations), "cut": cut}
        body = {"provenance": provenance(command), "data": sources.version, "vocabulary": vocabulary.version}
        body |= {"metrics": metrics} | ({"validation": result_of(trainer.state, len(validation))} if validation else {})
        ranks.from_first(lambda: _write_run(recipe, out, counts, trainer, start, body))
        return metrics


def make_examples(recipe: Recipe, sources: Sources, start: Start) -> tuple[PlannedRun, int]:
    """The examples of the whole run, the same list in every process, and how many rows were fitted by cuts.

    The one place where they are made: rows as ids (`sft.sources`), then how often and in which order (`sft.plan_examples`).
    """
    examples = examples_of(sources, start.template, recipe)
    lengths, cut = sorted(len(e.input_ids) for e in examples), sum(bool(e.cuts) for e in examples)
    middle = lengths[len(lengths) // 2]
    log.info("%d examples, median %d tokens, longest %d, %d fitted by cuts", len(lengths), middle, lengths[-1], cut)
    planned = plan_examples(recipe, examples, answer_ids(start.template), sources.weights)
    _check_alike(start, planned)
    return planned, cut


def split_sources(recipe: Recipe, vocabulary: Vocabulary, skip_bad: bool) -> tuple[Sources, list[Record]]:
    """(what to train on, records to validate on); the list is empty without the recipe's part `validation`."""
    sources, part = read_sources(recipe, vocabulary, skip_bad), recipe.validation
    if part is None:
        return sources, []
    if part.share is not None:
        kept, validation = hold_out(sources.records, part.share)
        sources = sources.only(kept)
    else:
        assert part.records is not None
        validation = read_records(part.records, skip_bad=skip_bad).records
        check_apart(sources.records, validation)
    return sources, some_of(validation, part.limit)


def _validator(
    recipe: Recipe, records: Sequence[Record], trainer: SFTTrainer, start: Start, vocabulary: Vocabulary
) -> Validator | None:
    if not records:
        return None
    tokens = prompt_budget(start.template, recipe.data.max_length, recipe.data.answer_tokens)
    loaded = in_training(trainer.model, start.template, trainer.args.device, recipe, tokens)
    parted = trainer.is_deepspeed_enabled and trainer.args.hf_deepspeed_config.is_zero3()
    return Validator(records, loaded, vocabulary, together=parted)


def _run(recipe: Recipe, trainer: SFTTrainer, checkpoint: Path | None) -> dict[str, Any]:
    """Train, or go on from a checkpoint unless its run had stopped early; the metrics of what was done now."""
    patience = None if recipe.validation is None else recipe.validation.patience
    metrics: dict[str, Any] = {"train_runtime": 0.0}
    if checkpoint is not None and exhausted(state_of(checkpoint), patience):
        trainer.state = state_of(checkpoint)
    else:
        metrics = dict(trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint)).metrics)
    if checkpoint is not None and trainer.state.global_step == step_of(checkpoint):  # nothing was left to do
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        metrics["train_loss"] = sum(losses) / max(1, len(losses))
    return metrics


def _check_alike(start: Start, planned: PlannedRun) -> None:
    """Assert that every process has the same tokenizer and examples: each makes its own."""
    if ranks.world() > 1:
        made = sha256_of(start.template.tokenizer.backend_tokenizer.to_str(), *(repr(e) for e in planned.examples))
        assert len(set(ranks.gathered(made))) == 1, "the processes made different examples"


def _write_run(
    recipe: Recipe, out: Path, counts: Counter[str], trainer: SFTTrainer, start: Start, body: dict[str, Any]
) -> None:
    """What a run folder holds beside its checkpoints; `run.json` last."""
    best = trainer.state.best_global_step if "validation" in body else None
    checkpoints = Path(trainer.args.output_dir)
    copy_weights(folder_of(checkpoints, best) if best else whole_checkpoints(checkpoints)[-1], out)
    start.template.tokenizer.save_pretrained(out)
    name_base(recipe, out)
    prompt_tokens = prompt_budget(start.template, recipe.data.max_length, recipe.data.answer_tokens)
    with whole_file(out / TRAINED) as handle:
        json.dump(trained_on(recipe, counts, prompt_tokens), handle, ensure_ascii=False)
    with whole_file(out / "run.json") as handle:
        json.dump(body, handle, ensure_ascii=False, indent=1)
