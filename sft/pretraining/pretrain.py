"""Continued pretraining on plain text, from a recipe to a run folder that `yaofang sft --set model.path=RUN` starts from.

A document is `[gMASK]<sop>`, its text and `<|endoftext|>`, encoded as text (a marker typed into it stays text). One that is
longer than a block goes on in further pieces, each with `[gMASK]<sop>` before it: the loss is on every token of the text and
on the end, once each, never on the prefix. Pieces are packed into blocks; each sees itself only, with positions from 0.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from trl import SFTTrainer

from yaofang.data.corpus import Document, Split, read_corpus, split_corpus
from yaofang.data.parallel import spread
from yaofang.data.prompts import build_prompt
from yaofang.data.provenance import provenance
from yaofang.data.ward.simulate import simulate
from yaofang.glm.template import ChatTemplate
from yaofang.sft import ranks
from yaofang.sft.build import build_trainer, training_arguments
from yaofang.sft.checkpoints import copy_weights, drop_torn, step_of, whole_checkpoints
from yaofang.sft.examples import Example
from yaofang.sft.pretraining.perplexity import Measure, Text
from yaofang.sft.pretraining.recipe import PretrainRecipe, load_pretrain_recipe
from yaofang.sft.run_folder import check_data, check_out, last_checkpoint, name_base, write_start
from yaofang.sft.start import Start, start_from
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of, whole_file

log = logging.getLogger(__name__)


def pretrain(
    recipe: PretrainRecipe, out: Path, *, resume: bool = False, skip_bad: bool = False, command: str = "yaofang pretrain"
) -> dict[str, Any]:
    """Run the recipe and write the run folder `out`; returns what `run.json` says. Under torchrun every process calls it.

    Raises InputError for text that cannot be read, an empty corpus, or a run folder that is already there. With `skip_bad`
    files and rows that cannot be read are left out and listed in the log.
    """
    with ranks.joined():
        checkpoint = ranks.from_first(lambda: _open_folder(recipe, out, resume))
        blocks = recipe.blocks()
        args = training_arguments(blocks, out)
        split = read_split(recipe, skip_bad)
        texts = [document.text for document in split.train]
        held_out_texts = [document.text for document in split.held_out]
        versions = {"corpus": sha256_of(*texts)[:12], "held-out text": sha256_of(*held_out_texts)[:12]}
        ranks.from_first(lambda: check_data(out, versions))
        start = start_from(blocks, (), load_vocabulary(recipe.data.vocabulary), texts)
        examples = pieces_of(split.train, start.template, recipe.data.max_length)
        trainer = build_trainer(blocks, start, examples, args)
        held_out = _text(split.held_out, start.template, recipe.data.max_length)
        measured = Measure(trainer, held_out, out) if held_out.pieces else None
        if measured is not None:
            trainer.add_callback(measured)
        ranks.from_first(lambda: write_start(recipe, versions, out))
        answer = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        body = {
            "provenance": provenance(command),
            "data": versions["corpus"],
            "corpus": _sizes(split, examples, trainer),
            "held_out": None if measured is None else held_out_result(measured),
            "metrics": _metrics(trainer, checkpoint, dict(answer.metrics)),
        }
        ranks.from_first(lambda: _write_run(recipe, out, trainer, start, body))
        return body


def _metrics(trainer: SFTTrainer, checkpoint: Path | None, metrics: dict[str, Any]) -> dict[str, Any]:
    """The trainer's metrics; where a resumed run had nothing left to do, the loss is the mean of those that were logged."""
    if checkpoint is not None and trainer.state.global_step == step_of(checkpoint):
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        metrics["train_loss"] = sum(losses) / max(1, len(losses))
    return metrics


def read_split(recipe: PretrainRecipe, skip_bad: bool) -> Split:
    """The documents to train on and those to measure on."""
    data = recipe.data
    reading = partial(read_corpus, per=data.documents_per, text_field=data.text_field, skip_bad=skip_bad)
    documents = ward_documents(data.ward.patients, data.ward.seed) if data.ward else _read(reading, data.corpus)
    if data.held_out is None:
        return Split(documents, [], 0)
    split = split_corpus(documents, _read(reading, [data.held_out]) if isinstance(data.held_out, Path) else data.held_out)
    log.info("%d documents to train on, %d held out", len(split.train), len(split.held_out))
    if split.duplicates:
        log.info("%d documents left out: their text is held out already", split.duplicates)
    return split


def ward_documents(patients: int, seed: int) -> list[Document]:
    """The record texts of a simulated ward's training patients, by sections, without diagnoses and drugs."""
    return [Document(record.id, build_prompt(record).messages[1]["content"]) for record in simulate(patients, seed).train]


def _read(reading: Any, paths: Sequence[Path]) -> list[Document]:
    corpus = reading(paths)
    for error in corpus.skipped:
        log.warning("skipped: %s", error)
    if corpus.ignored or corpus.empty:
        log.info("left out: %d files of another kind, %d documents without text", corpus.ignored, corpus.empty)
    found: list[Document] = corpus.documents
    return found


def pieces_of(documents: Sequence[Document], template: ChatTemplate, max_length: int) -> list[Example]:
    """The documents as pieces of at most `max_length` ids, in order, none of a text's tokens lost (asserted)."""
    made = spread(partial(_pieces, template=template, max_length=max_length), documents)
    examples = [example for _, pieces in made for example in pieces]
    assert sum(tokens for tokens, _ in made) == sum(sum(example.completion_mask) for example in examples), "a token was lost"
    return examples


def _pieces(documents: Sequence[Document], template: ChatTemplate, max_length: int) -> list[tuple[int, list[Example]]]:
    """For each document its number of tokens, with its end, and its pieces: as few as possible, of like length."""
    prefix, found = list(template.prefix), []
    for document in documents:
        # GLM-4 pads with the id that ends a document, `<|endoftext|>`.
        ids = [*template.encode(document.text), template.pad_id]
        number = -(-len(ids) // (max_length - len(prefix)))
        cuts = [len(ids) * place // number for place in range(number + 1)]
        pieces = [ids[start:end] for start, end in pairwise(cuts)]
        masks = [[0] * len(prefix) + [1] * len(piece) for piece in pieces]
        rows = zip(pieces, masks, strict=True)
        made = [Example(f"{document.id}#{n}", [*prefix, *piece], mask, ()) for n, (piece, mask) in enumerate(rows, 1)]
        found.append((len(ids), made))
    return found


def _text(documents: Sequence[Document], template: ChatTemplate, max_length: int) -> Text:
    texts = [document.text for document in documents]
    sizes = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
    return Text(pieces_of(documents, template, max_length), *sizes)


def held_out_result(measured: Measure) -> dict[str, Any]:
    """What `run.json` says of the held-out text: its size, and its perplexity before and after."""
    before, after = measured.before, measured.after
    assert before is not None
    assert after is not None
    size = {"tokens": after.tokens, "characters": after.characters, "bytes": after.bytes}
    return {**size, "before": before.to_json(), "after": after.to_json()}


def _sizes(split: Split, examples: Sequence[Example], trainer: SFTTrainer) -> dict[str, int]:
    return {
        "documents": len(split.train),
        "tokens": sum(sum(example.completion_mask) for example in examples),
        "pieces": len(examples),
        "blocks": len(trainer.train_dataset),
        "held_out_documents": len(split.held_out),
        "held_out_duplicates": split.duplicates,
    }


def _open_folder(recipe: PretrainRecipe, out: Path, resume: bool) -> Path | None:
    """Check the run folder; with `resume` the newest whole checkpoint."""
    check_out(out, resume)
    if not resume:
        return None
    file = out / "recipe.yaml"
    free = {"training": {"epochs", "max_steps", "stop_at", "log_every", "save_every"}}
    if file.exists() and load_pretrain_recipe(str(file)).model_dump(exclude=free) != recipe.model_dump(exclude=free):
        way_out = "Give the same recipe, or another folder with --out."
        raise InputError("the run in this folder was started with another recipe", file=file, way_out=way_out)
    drop_torn(out / "checkpoints")
    return last_checkpoint(out)


def _write_run(recipe: PretrainRecipe, out: Path, trainer: SFTTrainer, start: Start, body: dict[str, Any]) -> None:
    """Weights, tokenizer, and `run.json` last."""
    copy_weights(whole_checkpoints(Path(trainer.args.output_dir))[-1], out)
    start.template.tokenizer.save_pretrained(out)
    name_base(recipe.blocks(), out)
    with whole_file(out / "run.json") as handle:
        json.dump(body, handle, ensure_ascii=False, indent=1)
