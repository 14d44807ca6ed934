"""Adapters merged into small bases of random weights: what is written says the same, or is not written."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from yaofang.app.cli import main
from yaofang.app.merge_verb import merge as verb
from yaofang.data.records import Record, write_records
from yaofang.decoding.calibration import Calibration, load_calibration
from yaofang.glm.loading import BUNDLED, folder_version, load_model
from yaofang.glm.tiny import Architecture, random_tiny
from yaofang.sft.merging import merge as merging
from yaofang.sft.merging.adapter import read_adapter
from yaofang.sft.merging.check import Difference, Reference, Tolerance, check, tolerance
from yaofang.sft.merging.merge import export_dtype, merge
from yaofang.sft.parts import Lora
from yaofang.vocab.errors import InputError

CHAT = "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}<|assistant|>"


def make_base(folder: Path, architecture: Architecture = "glm", **sizes: int) -> Path:
    made = random_tiny(architecture=architecture, **sizes)
    made.model.save_pretrained(folder)
    made.template.tokenizer.chat_template = CHAT
    made.template.tokenizer.save_pretrained(folder)
    return folder


def make_run(folder: Path, base: Path, *, std: float = 0.2, seed: int = 0) -> Path:
    """A run as training leaves it: LoRA on all linear layers, tokenizer, recipe, what decoding has to know."""
    loaded = load_model(base, device="cpu", dtype="float32")
    torch.manual_seed(seed)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=list(Lora().targets), task_type="CAUSAL_LM")
    adapter = get_peft_model(loaded.model, settings)
    for name, value in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=std) if std else torch.nn.init.zeros_(value)
    adapter.save_pretrained(folder)
    loaded.template.tokenizer.save_pretrained(folder)
    change(folder / "adapter_config.json", base_model_name_or_path=str(base))
    (folder / "yaofang.json").write_text('{"prompt_tokens": 200, "drug_counts": {"阿卡波糖": 3}, "later": [1]}')
    (folder / "recipe.yaml").write_text(f"model:\n  path: {base}\n  quantize: null\n")
    return folder


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def damage(run: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Edit the adapter's weights in place."""
    tensors = load_file(run / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, run / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    value = {"性别": "女", "主诉": "烦渴、多饮5年。", "现病史": "血糖控制不佳。"}
    rows = [
        Record.model_validate({"患者序号": n, "就诊标识": f"{n}-1", **value, "出院诊断": ["2型糖尿病", "高血压"][:n]})
        for n in (1, 2)
    ]
    file = tmp_path_factory.mktemp("records") / "records.jsonl"
    write_records(file, rows)
    return file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", base)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found


@dataclass(frozen=True)
class Merged:
    """A run, the folder that the verb made of it, and what the verb printed with --json."""

    run: Path
    out: Path
    body: dict[str, Any]
    curve: Calibration


@pytest.fixture(scope="module")
def merged(base: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Merged:
    folder = tmp_path_factory.mktemp("merged")
    run, out = make_run(folder / "run", base), folder / "out"
    curve = Calibration((0.0, 1.0), (0.0, 0.8), 24, {"model": folder_version(run), "patients": 9})
    curve.write(run)
    app = typer.Typer()
    app.command()(verb)
    more = ["--records", str(records), "--device", "cpu", "--max-shard-size", "100KB", "--json"]
    done = CliRunner().invoke(app, ["--model", str(run), "--out", str(out), *more])
    assert done.exit_code == 0, done.output
    return Merged(run, out, json.loads(done.stdout), curve)


def check_opens_in_plain_transformers(run: Path, out: Path, body: dict[str, Any]) -> None:
    own, model = load_model(run, device="cpu"), AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([own.template.prompt_ids([{"role": "user", "content": "高血压，糖尿病"}])])
    torch.testing.assert_close(logits(model, ids), logits(own.model, ids), rtol=0, atol=1e-5)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == CHAT
    assert tokenizer("高血压", add_special_tokens=False).input_ids == own.template.encode("高血压")
    found = body["check"]
    assert found["reloaded"]["largest"] < found["tolerance"] < found["adapter_effect"]["largest"]
    assert found["reloaded"]["same_argmax"] == 1
    assert found["reloaded"]["answers_parting_at_a_tie"] == 0
    assert found["positions"] > 100


def test_the_merged_folder_opens_in_plain_transformers_with_the_logits_of_base_and_adapter(merged: Merged) -> None:
    assert len(list(merged.out.glob("*.safetensors"))) > 1
    check_opens_in_plain_transformers(merged.run, merged.out, merged.body)


def test_the_other_architecture_merges_alike(tmp_path: Path, records: Path) -> None:
    run = make_run(tmp_path / "run", make_base(tmp_path / "base", "glm4"))
    body = merge(run, tmp_path / "out", records=records, device="cpu")
    check_opens_in_plain_transformers(run, tmp_path / "out", body)


def test_the_folder_holds_all_that_decoding_needs_and_says_where_it_comes_from(merged: Merged, base: Path) -> None:
    run, out, body = merged.run, merged.out, merged.body
    loaded = load_model(out, device="cpu")
    assert (out / "yaofang.json").read_bytes() == (run / "yaofang.json").read_bytes()
    assert (loaded.prompt_tokens, loaded.drug_counts) == (200, {"阿卡波糖": 3})
    assert set(loaded.model.generation_config.eos_token_id) == set(loaded.template.stop_ids)
    assert loaded.model.generation_config.pad_token_id == loaded.template.pad_id
    assert body == json.loads((out / "merge.json").read_text())
    assert body["version"] == loaded.version
    assert body["adapter"]["version"] == folder_version(run)
    assert body["base"]["sha256"] == {"model.safetensors": merging.file_hash(base / "model.safetensors")}
    assert body["dtype"] == "float32"
    assert not (out / "adapter_config.json").exists()


def test_a_calibration_made_for_the_run_goes_along(merged: Merged) -> None:
    carried = load_calibration(merged.out)
    assert carried is not None
    assert carried.version == merged.curve.version
    assert carried.about == {"model": merged.body["version"], "merged_from": folder_version(merged.run), "patients": 9}


def test_predict_gives_the_same_lists_with_the_merged_folder(merged: Merged, records: Path, tmp_path: Path) -> None:
    found = []
    for folder in (merged.run, merged.out):
        file = tmp_path / f"{folder.name}.json"
        more = ["--records", str(records), "--device", "cpu", "--strategy", "greedy"]
        with pytest.raises(SystemExit) as ended:
            main(["predict", "--model", str(folder), "--out", str(file), *more])
        assert not ended.value.code
        found.append(json.loads(file.read_text()))
    assert found[0] == found[1]


def test_an_adapter_below_the_rounding_of_the_format_is_refused_not_lost(base: Path, records: Path, tmp_path: Path) -> None:
    faint = make_run(tmp_path / "run", base, std=2e-4)
    with pytest.raises(InputError, match=r"cannot be told from a merge that lost the adapter.*--dtype float32"):
        merge(faint, tmp_path / "out", records=records, dtype="bfloat16", device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_zeros_is_merged_and_named(base: Path, records: Path, tmp_path: Path) -> None:
    body = merge(make_run(tmp_path / "run", base, std=0), tmp_path / "out", records=records, device="cpu")
    assert body["check"]["adapter_effect"]["largest"] == 0
    assert any("all zeros" in note for note in body["notes"])


@pytest.mark.parametrize(
    ("layer", "dtype", "problem"),
    [(None, "float32", "differ from base"), (1, "float32", "differ from base"), (1, "bfloat16", "layers.1.* is off by")],
)
def test_a_merge_that_loses_a_layer_or_the_adapter_is_not_published(
    layer: int | None, dtype: str, problem: str, run: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraModel

    merge_all = LoraModel.merge_and_unload

    def merge_some(self: Any, **options: Any) -> Any:
        if layer is None:
            return self.unload()
        for name, value in self.named_parameters():
            if f"layers.{layer}." in name and "lora_B" in name:
                value.data.zero_()
        return merge_all(self.base_model, **options)

    monkeypatch.setattr(PeftModel, "merge_and_unload", merge_some, raising=False)
    if dtype == "bfloat16":  # what a weak layer does to the logits drowns in rounding
        damage(run, _weak_layer)
    with pytest.raises(InputError, match=problem):
        merge(run, tmp_path / "out", records=records, device="cpu", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_weights_that_change_while_they_are_written_are_found_by_loading_them_again(
    run: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = merging._save

    def save_damaged(merged: Any, folder: Path, size: str) -> None:
        save(merged, folder, size)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] += 0.1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merging, "_save", save_damaged)
    with pytest.raises(InputError, match="loaded from the written files"):
        merge(run, tmp_path / "out", records=records, device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def _weak_layer(tensors: dict[str, torch.Tensor]) -> None:
    for key, value in tensors.items():
        if "layers.1" in key and "lora_B" in key:
            value *= 0.01


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = math.nan


def _short(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(key for key in tensors if "layers.1" in key)]


def _narrow(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if "q_proj.lora_A" in key)
    tensors[key] = tensors[key][:, :-8].contiguous()


def _deeper(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if "layers.1" in key)
    tensors[key.replace("layers.1", "layers.2")] = tensors[key].clone()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_nan, "holds NaN"),
        (_short, "does not fit its base"),
        (_narrow, "another base.*takes 64 inputs in the base and 56"),
        (_deeper, "another base.*the base has no model.layers.2"),
    ],
)
def test_a_damaged_adapter_or_one_of_another_base_is_refused(
    edit: Callable[[dict[str, torch.Tensor]], None], message: str, run: Path, tmp_path: Path
) -> None:
    damage(run, edit)
    with pytest.raises(InputError, match=message):
        merge(run, tmp_path / "out", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_torn_file_of_weights_is_refused(run: Path, tmp_path: Path) -> None:
    file = run / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="broken weights"):
        merge(run, tmp_path / "out", device="cpu")


def test_a_base_that_has_moved_is_given_by_its_folder(run: Path, base: Path, records: Path, tmp_path: Path) -> None:
    change(run / "adapter_config.json", base_model_name_or_path="gone/elsewhere")
    with pytest.raises(InputError, match=r"gone/elsewhere is not here.*--base"):
        merge(run, tmp_path / "out", records=records, device="cpu")
    Calibration((0.0, 1.0), (0.0, 0.8), 24, {"model": "another"}).write(run)
    body = merge(run, tmp_path / "out", base=base, records=records, device="cpu")
    assert load_model(tmp_path / "out", device="cpu").model.config.model_type == "glm"
    assert load_calibration(tmp_path / "out") is None, "made for another model"
    assert any("yaofang calibrate" in note for note in body["notes"])


def test_what_cannot_be_merged_or_written_is_refused_with_a_way_out(run: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    cases: list[tuple[Path, Path, dict[str, Any], str]] = [
        (BUNDLED, tmp_path / "out", {}, "holds whole weights and no adapter.*yaofang predict"),
        (tmp_path / "none", tmp_path / "out", {}, "no such run folder"),
        (run, tmp_path / "full", {}, "not an empty folder.*--out"),
        (run, tmp_path / "no" / "out", {}, "there is no folder"),
        (run, tmp_path / "out", {"dtype": "int8"}, "--dtype int8"),
        (run, tmp_path / "out", {"base": tmp_path / "full"}, "no config.json"),
        (run, tmp_path / "out", {"base": run}, "an adapter itself.*Merge that one first"),
    ]
    for folder, out, options, message in cases:
        with pytest.raises(InputError, match=message):
            merge(folder, out, device="cpu", **options)
    for text in ("model: [", "- a", "model: 3"):
        (run / "recipe.yaml").write_text(text)
        with pytest.raises(InputError, match="this is no recipe"):
            merge(run, tmp_path / "out", device="cpu")
    change(run / "adapter_config.json", modules_to_save=["lm_head"])
    with pytest.raises(InputError, match="modules_to_save"):
        merge(run, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def _merge_until_written(written: Any, run: Path, out: Path, records: Path) -> None:
    def stop(*_: Any) -> None:
        written.set()
        time.sleep(600)

    torch.set_num_threads(1)  # the parent's threads are not there after a fork
    setattr(merging, "_check_written", stop)  # noqa: B010  # this process is killed
    merge(run, out, records=records, device="cpu")


def test_a_killed_merge_leaves_nothing_under_the_name(run: Path, records: Path, tmp_path: Path) -> None:
    forked = multiprocessing.get_context("fork")
    written = forked.Event()
    child = forked.Process(target=_merge_until_written, args=(written, run, tmp_path / "out", records))
    child.start()
    reached = written.wait(120)
    child.kill()
    child.join()
    assert reached
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.glob(".out.*.part")
    assert (left / "model.safetensors").exists()


def test_an_adapter_of_a_quantised_base_is_merged_in_bfloat16_and_the_distance_is_told(records: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_base(tmp_path / "base", hidden=128))
    (run / "recipe.yaml").write_text("model:\n  quantize: 4bit\n")
    body = merge(run, tmp_path / "out", records=records, device="cpu")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert body["check"]["tolerance"] > body["check"]["reloaded"]["largest"] > 0
    assert "bfloat16" in body["check"]["tolerance_reason"]
    (note,) = [note for note in body["notes"] if "4bit" in note]
    if find_spec("bitsandbytes") is None:
        assert "not measured" in note
    else:
        assert body["quantised"]["difference"]["largest"] > body["check"]["reloaded"]["largest"]
        assert "in the logits" in note


def test_the_format_is_the_bases_own_unless_it_was_quantised(run: Path) -> None:
    adapter = read_adapter(run)
    assert export_dtype("auto", adapter) == torch.float32
    assert export_dtype("auto", replace(adapter, quantized="8bit")) == torch.bfloat16
    assert export_dtype("float16", adapter) == torch.float16


def test_no_tolerance_is_so_wide_that_a_lost_adapter_passes() -> None:
    effect = Difference(1.0, 0.1, 0.9, 10)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        allowed = Tolerance(tolerance(dtype, 40, 3.0, 30.0).largest + 10, "wide")
        held = Reference((), effect, 3.0, allowed, dtype, empty=False)
        check(Difference(0.5, 0.02, 1, 10), held, "this")
        for lost in (effect, Difference(0.9, 0.05, 1, 10), Difference(1.0, 0.02, 1, 10)):
            with pytest.raises(InputError, match="lost the adapter"):
                check(lost, held, "this")
        with pytest.raises(InputError, match="allowed"):
            check(Difference(math.nan, math.nan, 1, 10), held, "this")


def test_the_tolerance_narrows_with_the_format() -> None:
    bf16, fp16, fp32 = (tolerance(d, 40, 2.0, 20.0).largest for d in (torch.bfloat16, torch.float16, torch.float32))
    assert bf16 == pytest.approx(8 * fp16)
    assert fp32 == pytest.approx(2e-4)
    assert fp16 > 10 * fp32
