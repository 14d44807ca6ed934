from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from yaofang.glm import loading
from yaofang.glm.loading import (
    BUNDLED,
    LoadedModel,
    choose_attention,
    choose_device,
    choose_dtype,
    folder_version,
    load_model,
)
from yaofang.glm.tiny import Architecture, random_tiny
from yaofang.vocab.errors import InputError


def save(loaded: LoadedModel, folder: Path) -> Path:
    loaded.model.save_pretrained(folder)
    loaded.template.tokenizer.save_pretrained(folder)
    return folder


def adapter_run(folder: Path, base: Path, model: Any, targets: list[str]) -> Any:
    adapter = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    adapter.save_pretrained(folder)
    settings = folder / "adapter_config.json"
    value = json.loads(settings.read_text(encoding="utf-8")) | {"base_model_name_or_path": str(base)}
    settings.write_text(json.dumps(value), encoding="utf-8")
    return adapter.eval()


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_a_saved_model_loads_with_the_same_logits(architecture: Architecture, tmp_path: Path) -> None:
    made = random_tiny(architecture=architecture)
    loaded = load_model(save(made, tmp_path), device="cpu")
    ids = torch.tensor([loaded.template.prompt_ids([{"role": "user", "content": "高血压"}])])
    assert loaded.model.config.model_type == architecture
    assert loaded.template.prompt_ids([{"role": "user", "content": "高血压"}]) == ids[0].tolist()
    torch.testing.assert_close(loaded.model(ids).logits, made.model(ids).logits)


def test_every_choice_has_a_reason(tmp_path: Path) -> None:
    loaded = load_model(save(random_tiny(), tmp_path), device="cpu")
    assert [reason.split()[0] for reason in loaded.reasons] == ["device", "dtype", "attention"]
    assert loaded.dtype == torch.float32
    assert loaded.context == 4096


def test_an_adapter_loads_on_the_base_that_it_names(tmp_path: Path) -> None:
    made = random_tiny()
    adapter = adapter_run(tmp_path / "run", save(made, tmp_path / "base"), made.model, ["q_proj"])
    loaded = load_model(tmp_path / "run", device="cpu")
    ids = torch.tensor([made.template.encode("高血压")])
    torch.testing.assert_close(loaded.model(ids).logits, adapter(ids).logits)


def test_an_adapter_on_an_adapter_loads_on_both(tmp_path: Path) -> None:
    made = random_tiny()
    folder = save(made, tmp_path / "base")
    first = adapter_run(tmp_path / "first", folder, made.model, ["q_proj"])
    second = adapter_run(tmp_path / "second", tmp_path / "first", first.merge_and_unload(), ["v_proj"])
    loaded = load_model(tmp_path / "second", device="cpu")
    ids = torch.tensor([[*made.template.prefix, 5, 6]])
    torch.testing.assert_close(loaded.model(ids).logits, second(ids).logits)
    assert loaded.context == made.context


def test_the_version_of_an_adapter_changes_with_its_base(tmp_path: Path) -> None:
    made = random_tiny()
    folder = save(made, tmp_path / "base")
    adapter_run(tmp_path / "run", folder, made.model, ["q_proj"])
    before = folder_version(tmp_path / "run")
    random_tiny(seed=1).model.save_pretrained(folder)
    assert folder_version(tmp_path / "run") != before


@pytest.mark.parametrize("wrong", ["size", "missing"])
def test_an_adapter_that_does_not_fit_its_base_is_refused(wrong: str, tmp_path: Path) -> None:
    made = random_tiny()
    folder = save(made, tmp_path / "base")
    adapter_run(tmp_path / "run", folder, made.model, ["q_proj"])
    if wrong == "size":
        random_tiny(hidden=32).model.save_pretrained(folder)
    else:
        file = tmp_path / "run" / "adapter_model.safetensors"
        kept = {name: value for name, value in load_file(file).items() if ".layers.0." in name}
        save_file(kept, file)
    with pytest.raises(InputError, match="does not fit its base"):
        load_model(tmp_path / "run", device="cpu")


def test_an_adapter_that_acts_outside_the_layers_is_refused(tmp_path: Path) -> None:
    made = random_tiny()
    adapter = get_peft_model(made.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    adapter.save_pretrained(tmp_path / "run")
    file = tmp_path / "run" / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "base_model_name_or_path": str(save(random_tiny(), tmp_path / "base"))}))
    with pytest.raises(InputError, match="PROMPT_TUNING is no part"):
        load_model(tmp_path / "run", device="cpu")


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gone"}')
    with pytest.raises(InputError, match="base model gone is not here"):
        load_model(tmp_path)


def test_the_old_chatglm_format_is_refused_with_the_name_of_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="glm-4-9b-chat-hf"):
        load_model(tmp_path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="not glm or glm4"):
        load_model(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "glm"}')
    with pytest.raises(InputError, match="no weights"):
        load_model(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        load_model(tmp_path / "nowhere")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    random_tiny().model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        load_model(tmp_path)


def test_the_version_changes_with_the_weights(tmp_path: Path) -> None:
    one = load_model(save(random_tiny(seed=1), tmp_path / "one")).version
    two = load_model(save(random_tiny(seed=2), tmp_path / "two")).version
    again = load_model(save(random_tiny(seed=1), tmp_path / "again")).version
    assert one != two
    assert one == again


def test_automatic_choices_say_why() -> None:
    device, why = choose_device("cpu")
    assert (device.type, why) == ("cpu", "device cpu: asked for")
    assert choose_dtype("auto", torch.device("cpu"))[0] == torch.float32
    assert choose_attention("auto", torch.device("cpu"), torch.float32)[0] == "sdpa"
    with pytest.raises(InputError, match="--dtype float8"):
        choose_dtype("float8", torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no CUDA device"):
        choose_device("cuda")


def test_four_bit_loading_answers_like_the_full_model(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    made = random_tiny(hidden=128)
    loaded = load_model(save(made, tmp_path), device="cpu", quantize="4bit")
    ids = torch.tensor([made.template.encode("高血压，糖尿病")])
    exact, rough = made.model(ids).logits, loaded.model(ids).logits.float()
    assert any("4bit" in type(module).__name__ for module in loaded.model.modules())
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.9


@pytest.mark.skipif(not (BUNDLED / "config.json").exists(), reason="the bundled model is being rebuilt")
def test_the_bundled_model_is_small_and_knows_the_vocabulary() -> None:
    loaded = load_model(device="cpu")
    size = sum(file.stat().st_size for file in BUNDLED.glob("*.safetensors"))
    assert size <= 12_000_000
    assert loaded.name == "tiny"
    assert loaded.template.decode(loaded.template.encode("阿托伐他汀钙片")) == "阿托伐他汀钙片"


def test_a_broken_configuration_and_broken_weights_are_errors_with_a_way_out(tmp_path: Path) -> None:
    save(random_tiny(), tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8")
    with pytest.raises(InputError, match="broken weights"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: no valid JSON"):
        load_model(tmp_path, device="cpu")


def test_two_large_files_of_one_size_have_two_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LARGE", 1000)
    monkeypatch.setattr(loading, "SAMPLE", 16)
    found = set()
    for byte in (b"a", b"b"):
        (tmp_path / "model.safetensors").write_bytes(b"x" * 4000 + byte * 200 + b"x" * 4000)
        found.add(folder_version(tmp_path))
    assert len(found) == 2
