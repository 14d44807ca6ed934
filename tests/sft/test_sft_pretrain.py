"""Continued pretraining through the real trainer, on the ward's texts and a model of some ten thousand parameters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from peft import PeftModel
from typer.testing import CliRunner

from yaofang.app.pretrain_verb import pretrain as verb
from yaofang.data.corpus import Document
from yaofang.data.records import write_records
from yaofang.data.ward.simulate import simulate
from yaofang.glm.loading import load_model
from yaofang.glm.template import PREFIX, ChatTemplate
from yaofang.glm.tiny import random_tiny
from yaofang.sft.build import build_trainer, training_arguments
from yaofang.sft.examples import Example
from yaofang.sft.parts import Recipe
from yaofang.sft.pretraining.perplexity import Perplexity
from yaofang.sft.pretraining.pretrain import pieces_of, pretrain, read_split, ward_documents
from yaofang.sft.pretraining.recipe import PretrainRecipe, load_pretrain_recipe
from yaofang.sft.start import Start, start_from
from yaofang.sft.train import train
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

FRESH = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 48, "context": 512, "tokenizer_size": 700}
SHORT = {"max_steps": 6, "batch_size": 2, "learning_rate": 1e-2, "warmup": 0, "log_every": 1, "save_every": 3, "bf16": False}


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the records of a small ward begin with, a file each, and one of them twice."""
    folder = tmp_path_factory.mktemp("texts")
    documents = ward_documents(10, 3)
    for document in [*documents, Document("copy", documents[0].text)]:
        (folder / f"{document.id}.txt").write_text(document.text[:100], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def run(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished pretraining of a fresh model."""
    out = tmp_path_factory.mktemp("run") / "fresh"
    return out, pretrain(recipe(texts), out)


def recipe(texts: Path, **changes: object) -> PretrainRecipe:
    value: dict[str, object] = {
        "model": {"fresh": FRESH},
        "data": {"corpus": [str(texts)], "max_length": 256, "held_out": 0.2},
        "training": SHORT,
    }
    return PretrainRecipe.model_validate(value | changes)


def template() -> ChatTemplate:
    return random_tiny().template


def test_a_document_is_prefix_text_and_end_and_a_marker_typed_into_it_stays_text() -> None:
    made = template()
    text = "高血压<|endoftext|>用药"
    (piece,) = pieces_of([Document("a", text)], made, 128)
    ids = made.tokenizer.convert_tokens_to_ids([*PREFIX, "<|endoftext|>"])
    assert piece.input_ids == [*ids[:2], *made.encode(text), ids[2]]
    assert piece.completion_mask == [0, 0, *[1] * (len(piece.input_ids) - 2)]
    assert made.decode(piece.input_ids) == text


def test_a_long_document_goes_on_in_further_pieces_and_nothing_is_lost() -> None:
    made = template()
    text = "患者血糖控制不佳，" * 60
    pieces = pieces_of([Document("a", text), Document("b", "短")], made, 100)
    assert max(len(piece.input_ids) for piece in pieces) <= 100
    assert [piece.id for piece in pieces[:2]] == ["a#1", "a#2"]
    assert pieces[-1].id == "b#1"
    assert all(piece.input_ids[:2] == list(made.prefix) for piece in pieces)
    trained = [i for piece in pieces[:-1] for i, bit in zip(piece.input_ids, piece.completion_mask, strict=True) if bit]
    assert trained == [*made.encode(text), made.pad_id]
    lengths = [len(piece.input_ids) for piece in pieces[:-1]]
    assert max(lengths) - min(lengths) <= 1


def test_perplexity_on_held_out_text_falls(run: tuple[Path, dict[str, Any]]) -> None:
    out, body = run
    before, after = body["held_out"]["before"], body["held_out"]["after"]
    assert after["perplexity_per_token"] < 0.8 * before["perplexity_per_token"]
    assert after["bits_per_byte"] < before["bits_per_byte"]
    assert json.loads((out / "run.json").read_text())["held_out"] == body["held_out"]
    assert body["corpus"]["held_out_documents"] >= 1
    assert body["corpus"]["blocks"] < body["corpus"]["pieces"]


def test_the_perplexity_is_that_of_the_model_in_the_run_folder(run: tuple[Path, dict[str, Any]], texts: Path) -> None:
    out, body = run
    loaded = load_model(out, device="cpu")
    split = read_split(recipe(texts), False)
    pieces = pieces_of(split.held_out, loaded.template, 256)
    nll, tokens = sum(nll_of(loaded.model, piece) for piece in pieces), sum(sum(piece.completion_mask) for piece in pieces)
    held_out = body["held_out"]
    assert held_out["tokens"] == tokens
    assert held_out["after"]["nll_per_token"] == pytest.approx(nll / tokens, rel=1e-5)
    characters = sum(len(document.text) for document in split.held_out)
    assert held_out["after"]["perplexity_per_character"] == pytest.approx(math.exp(nll / characters), rel=1e-4)


def test_a_text_that_is_held_out_is_not_trained_on_under_another_name(texts: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held.txt"
    held_out.write_text((texts / "copy.txt").read_text(encoding="utf-8"), encoding="utf-8")
    split = read_split(recipe(texts, data={"corpus": [texts], "held_out": held_out}), False)
    assert split.duplicates == 2
    assert split.held_out[0].text not in {document.text for document in split.train}


def test_the_perplexity_per_byte_does_not_hang_on_the_tokenizer() -> None:
    few, many = (Perplexity(100.0, tokens, 50, 150).to_json() for tokens in (20, 80))
    assert few["bits_per_byte"] == many["bits_per_byte"] == pytest.approx(100 / math.log(2) / 150)
    assert few["perplexity_per_token"] == pytest.approx(math.exp(5))


def test_fine_tuning_starts_from_the_weights_and_the_tokenizer_of_a_pretraining(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = run
    write_records(tmp_path / "train.jsonl", simulate(4, 5).train)
    data = {"train": tmp_path / "train.jsonl", "max_length": 400, "answer_tokens": 200}
    plan = Recipe.model_validate({"model": {"path": out}, "data": data, "training": {**SHORT, "max_steps": 1}})
    pretrained = load_model(out, device="cpu")
    start = start_from(plan, (), load_vocabulary())
    weights = pretrained.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in start.model.state_dict().items())
    train(plan, tmp_path / "sft")
    tuned = load_model(tmp_path / "sft", device="cpu")
    assert tuned.template.tokenizer.get_vocab() == pretrained.template.tokenizer.get_vocab()


@pytest.fixture(scope="session")
def adapter(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining with LoRA, its base beside it."""
    folder = tmp_path_factory.mktemp("lora")
    made = random_tiny(hidden=32, layers=1, context=512)
    made.model.save_pretrained(folder / "base")
    made.template.tokenizer.save_pretrained(folder / "base")
    pretrain(recipe(texts, model={"path": folder / "base"}, lora={"r": 4, "alpha": 64}), folder / "adapter")
    return folder / "adapter"


def test_an_adapter_of_a_pretraining_is_merged_before_fine_tuning_and_can_be_trained(adapter: Path, tmp_path: Path) -> None:
    assert not list(adapter.glob("model*.safetensors"))
    plan = {"model": {"path": adapter, "dtype": "float32"}, "data": {"train": tmp_path / "train.jsonl", "max_length": 400}}
    start = start_from(Recipe.model_validate(plan), (), load_vocabulary())
    ids = torch.tensor([start.template.encode("患者血糖控制不佳")])
    merged = start.model.eval()(ids).logits
    torch.testing.assert_close(merged, load_model(adapter, device="cpu").model(ids).logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(merged, load_model(adapter.parent / "base", device="cpu").model(ids).logits, atol=1e-3)
    assert all(weight.requires_grad for weight in start.model.parameters())
    assert not any("lora" in name for name, _ in start.model.named_parameters())
    quantized = {**plan, "model": {"path": adapter, "quantize": "4bit"}, "lora": {}}
    with pytest.raises(InputError, match="yaofang merge"):
        start_from(Recipe.model_validate(quantized), (), load_vocabulary())


def test_a_run_on_an_adapter_loads_with_all_that_is_below_it(adapter: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "train.jsonl", simulate(3, 5).train)
    data = {"train": tmp_path / "train.jsonl", "max_length": 400, "answer_tokens": 200}
    value = {"model": {"path": adapter}, "data": data, "lora": {"alpha": 64}, "training": {**SHORT, "max_steps": 2}}
    train(Recipe.model_validate(value), tmp_path / "sft")
    loaded = load_model(tmp_path / "sft", device="cpu")
    below = load_model(adapter, device="cpu").model.merge_and_unload()
    ids = torch.tensor([loaded.template.encode("患者血糖控制不佳")])
    pretrained = below(ids).logits
    tuned = PeftModel.from_pretrained(below, str(tmp_path / "sft")).eval()(ids).logits
    torch.testing.assert_close(loaded.model(ids).logits, tuned)
    assert not torch.allclose(tuned, pretrained, atol=1e-3)


def test_a_finished_pretraining_that_is_resumed_says_the_same(texts: Path, tmp_path: Path) -> None:
    plan = recipe(texts, training={**SHORT, "max_steps": -1, "epochs": 1, "batch_size": 6})
    first, again = pretrain(plan, tmp_path / "run"), pretrain(plan, tmp_path / "run", resume=True)
    assert again["held_out"] == first["held_out"]
    assert again["metrics"]["train_loss"] == pytest.approx(first["metrics"]["train_loss"], rel=1e-4)


def test_a_resumed_pretraining_ends_where_an_unbroken_one_does(
    run: tuple[Path, dict[str, Any]], texts: Path, tmp_path: Path
) -> None:
    whole, body = run
    pretrain(recipe(texts, training={**SHORT, "stop_at": 3}), tmp_path / "broken")
    resumed = pretrain(recipe(texts), tmp_path / "broken", resume=True)
    assert resumed["held_out"] == body["held_out"]
    one, two = (load_model(folder, device="cpu").model.state_dict() for folder in (whole, tmp_path / "broken"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    with pytest.raises(InputError, match="another recipe"):
        pretrain(recipe(texts, training={**SHORT, "seed": 9}), tmp_path / "broken", resume=True)
    known = json.loads((tmp_path / "broken" / "data.json").read_text(encoding="utf-8"))
    (tmp_path / "broken" / "data.json").write_text(json.dumps({**known, "held-out text": "0"}), encoding="utf-8")
    with pytest.raises(InputError, match="another held-out text"):
        pretrain(recipe(texts), tmp_path / "broken", resume=True)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"data": {"corpus": []}}, "exactly one of data.corpus and data.ward"),
        ({"data": {"corpus": ["a"], "held_out": 1.5}}, "less than 1"),
        ({"model": {"fresh": FRESH, "prefix_lm": True}}, "plain text has neither"),
        ({"training": {"drug_weight": 2}}, "plain text has none"),
        ({"lora": {}}, "lora on a fresh model"),
    ],
)
def test_what_pretraining_cannot_do_is_refused_with_the_recipe(change: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        recipe(tmp_path, **change)


@pytest.mark.parametrize("name", ["tiny-pretrain", "glm4-9b-pretrain-lora"])
def test_the_bundled_recipes_load(name: str) -> None:
    assert load_pretrain_recipe(name, ["training.epochs=2"]).training.epochs == 2


def test_documents_in_one_block_do_not_see_each_other(texts: Path, tmp_path: Path) -> None:
    plan = recipe(texts).blocks()
    made = random_tiny(hidden=32, layers=2, context=512)
    with torch.no_grad():  # or a random model would hardly notice what it may see
        for weight in made.model.model.layers.parameters():
            weight.mul_(4)
    pieces = pieces_of([Document("a", "血糖控制不佳，加用阿卡波糖。"), Document("b", "阿卡波糖餐前服。")], made.template, 256)
    trainer = build_trainer(plan, Start(made.model, made.template), pieces, training_arguments(plan, tmp_path))
    assert len(trainer.train_dataset) == 1
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        packed = float(trainer.compute_loss(trainer.model, batch)) * sum(sum(piece.completion_mask) for piece in pieces)
    alone = sum(nll_of(made.model, piece) for piece in pieces)
    assert packed == pytest.approx(alone, rel=1e-5)
    row = torch.tensor([[i for piece in pieces for i in piece.input_ids]])
    with torch.no_grad():
        seeing, lone = made.model(row).logits[0, -2], made.model(torch.tensor([pieces[1].input_ids])).logits[0, -2]
    assert float((seeing - lone).abs().max()) > 0.1


def nll_of(model: Any, piece: Example) -> float:
    ids = torch.tensor([piece.input_ids])
    with torch.no_grad():
        return -float(model(ids).logits.log_softmax(-1)[0, 1:-1].gather(1, ids[0, 2:, None]).sum())


def test_the_verb_prints_its_recipe_and_measures_a_run(texts: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(verb)
    shown = CliRunner().invoke(app, ["--config", "tiny-pretrain", "--sequence-parallel-size", "2", "--print-config"])
    assert yaml.safe_load(shown.stdout)["training"]["sequence_parallel_size"] == 2
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(texts, training={**SHORT, "max_steps": 1}).model_dump(mode="json")), encoding="utf-8")
    done = CliRunner().invoke(app, ["--config", str(file), "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "run.json").read_text())
