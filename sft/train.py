"""Supervised fine-tuning with TRL's SFTTrainer, from a recipe to a run folder that `yaofang predict --model RUN` loads."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yaofang.data.provenance import provenance
from yaofang.data.records import Record, read_records
from yaofang.data.ward.simulate import simulate
from yaofang.decoding.processors import answer_ids
from yaofang.eval.baselines.choice import usable_training
from yaofang.glm.loading import TRAINED
from yaofang.sft.build import build_trainer
from yaofang.sft.examples import Example, build_examples, prompt_budget
from yaofang.sft.parts import Recipe
from yaofang.sft.recipe import dump_recipe
from yaofang.sft.run_folder import check_out, check_same, data_hash, last_checkpoint, name_base, trained_on
from yaofang.sft.start import start_from
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.files import whole_file

log = logging.getLogger(__name__)


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, skip_bad: bool = False, command: str = "yaofang sft"
) -> dict[str, Any]:
    """Run the recipe and write the run folder `out`; returns the final metrics.

    Raises InputError for bad data, a label outside the vocabulary, or a run folder that is already there. With `skip_bad`
    records that cannot be trained on are left out and listed in the log.
    """
    check_out(out, resume)
    if resume:
        check_same(recipe, out)
    vocabulary = load_vocabulary(recipe.data.vocabulary)
    records = good_records(recipe, vocabulary, skip_bad)
    start = start_from(recipe, records, vocabulary)
    canonical = recipe.data.drug_order == "canonical"
    answer_ids(start.template)
    plan = recipe.data
    examples = build_examples(records, start.template, plan.max_length, answer_tokens=plan.answer_tokens, canonical=canonical)
    _log_sizes(examples)
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "recipe.yaml") as handle:
        handle.write(dump_recipe(recipe))
    trainer = build_trainer(recipe, start, examples, out)
    result = trainer.train(resume_from_checkpoint=last_checkpoint(out) if resume else None)
    trainer.save_model(str(out))
    if not trainer.is_world_process_zero():
        return dict(result.metrics)
    start.template.tokenizer.save_pretrained(out)
    name_base(recipe, out)
    prompt_tokens = prompt_budget(start.template, plan.max_length, plan.answer_tokens)
    with whole_file(out / TRAINED) as handle:
        json.dump(trained_on(records, prompt_tokens), handle, ensure_ascii=False)
    metrics = {**result.metrics, "records": len(records), "cut": sum(bool(e.cuts) for e in examples)}
    body = {
        "provenance": provenance(command),
        "data": data_hash(records),
        "vocabulary": vocabulary.version,
        "metrics": metrics,
    }
    with whole_file(out / "run.json") as handle:
        json.dump(body, handle, ensure_ascii=False, indent=1)
    return metrics


def good_records(recipe: Recipe, vocabulary: Vocabulary, skip_bad: bool) -> list[Record]:
    """The recipe's records that can be trained on. Raises the first error unless bad records are skipped."""
    if recipe.data.train is None:
        assert recipe.data.ward is not None
        records, errors = simulate(recipe.data.ward.patients, recipe.data.ward.seed).train, []
    else:
        read = read_records(recipe.data.train, skip_bad=skip_bad)
        records, errors = read.records, read.skipped
    good, unusable = usable_training(records, vocabulary, recipe.data.train)
    if unusable and not (skip_bad and good):
        raise unusable[0]
    for error in [*errors, *unusable]:
        log.warning("skipped: %s", error)
    return good


def _log_sizes(examples: Sequence[Example]) -> None:
    lengths = sorted(len(e.input_ids) for e in examples)
    cut = sum(bool(e.cuts) for e in examples)
    middle = lengths[len(lengths) // 2]
    log.info("%d examples, median %d tokens, longest %d, %d fitted by cuts", len(lengths), middle, lengths[-1], cut)
