"""The constraint inside `outlines.Generator`, on random GLM models: the real outlines, no stand-in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peaked_models import peaked

outlines = pytest.importorskip("outlines", reason="outlines is not installed")

from yaofang.data.answer import parse  # noqa: E402
from yaofang.decoding.constraint import Constraint, Phase  # noqa: E402
from yaofang.decoding.outlines_front import OutlinesProcessor, outlines_model, prompt_text  # noqa: E402
from yaofang.decoding.processors import AnswerProcessor, answer_ids  # noqa: E402
from yaofang.decoding.reading import Reading, read  # noqa: E402
from yaofang.glm.loading import LoadedModel, load_tokenizer  # noqa: E402
from yaofang.glm.template import ChatTemplate  # noqa: E402
from yaofang.glm.tiny import random_tiny  # noqa: E402
from yaofang.vocab.errors import InputError  # noqa: E402

LABELS = ["阿司匹林", "阿司匹林肠溶片", "瑞格列奈", "那格列奈", "达格列净片", "卡格列净片", "甲钴胺"]
PAIRS = [(0, 1), (2, 3), (4, 5)]  # by place in LABELS
CLASHES = {frozenset(pair) for pair in PAIRS}
PROMPTS = ["血糖高十年。", "患者三年前发现血糖升高，未规律服药，近日口干多饮。", "复查"]
ROOM = {"max_new_tokens": 120}
GLM4 = Path(__file__).parents[3] / "shared" / "tokenizers" / "glm4-hf"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return peaked(random_tiny([*"".join([*LABELS, *PROMPTS])], seed=21))


@pytest.fixture(scope="module")
def constraint(loaded: LoadedModel) -> Constraint:
    return rule(loaded, PAIRS)


def rule(loaded: LoadedModel, pairs: Sequence[tuple[int, int]]) -> Constraint:
    conflicts = np.zeros((len(LABELS), len(LABELS)), dtype=np.bool_)
    for a, b in pairs:
        conflicts[a, b] = True
    names = [loaded.template.encode(label) for label in LABELS]
    return Constraint(names, conflicts, answer_ids(loaded.template), max_diagnosis_tokens=6)


class Recorded:
    """The model with the new ids of every call of `generate` kept."""

    def __init__(self, loaded: LoadedModel, patch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        self._generate = loaded.model.generate
        patch.setattr(loaded.model, "generate", self)

    def __call__(self, input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        output: torch.Tensor = self._generate(input_ids=input_ids, **settings)
        self.rows = output[:, input_ids.shape[1] :].tolist()
        return output


@pytest.fixture
def recorded(loaded: LoadedModel) -> Iterator[Recorded]:
    with pytest.MonkeyPatch.context() as patch:
        yield Recorded(loaded, patch)


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def texts(loaded: LoadedModel) -> list[str]:
    return [prompt_text(loaded.template, turns(text)) for text in PROMPTS]


def without_outlines(loaded: LoadedModel, constraint: Constraint, text: str) -> list[int]:
    """Greedy ids by transformers' own generate, from ids that no string was made of."""
    ids = loaded.template.prompt_ids(turns(text))
    output = loaded.model.generate(
        input_ids=torch.tensor([ids]), logits_processor=[AnswerProcessor(constraint, len(ids))], do_sample=False, **ROOM
    )
    return output[0, len(ids) :].tolist()


def until_end(loaded: LoadedModel, ids: Sequence[int]) -> list[int]:
    ends = [at for at, token in enumerate(ids) if token in loaded.template.stop_ids]
    return list(ids[: ends[0] + 1])


def valid(constraint: Constraint, ids: Sequence[int]) -> Reading:
    reading = read(constraint, constraint.start(), ids)
    assert reading.state.phase == Phase.DONE
    assert reading.drugs
    assert len(set(reading.drugs)) == len(reading.drugs)
    assert not clashes(reading)
    return reading


def clashes(reading: Reading) -> list[frozenset[int]]:
    return [pair for a in reading.drugs for b in reading.drugs if (pair := frozenset((a, b))) in CLASHES]


def test_greedy_equals_generate_token_for_token_in_call_after_call(
    loaded: LoadedModel, constraint: Constraint, recorded: Recorded
) -> None:
    wanted = [without_outlines(loaded, constraint, text) for text in PROMPTS]
    generate = outlines.Generator(outlines_model(loaded), processor=OutlinesProcessor(constraint))
    for text, ids in [*zip(texts(loaded), wanted, strict=True), (texts(loaded)[0], wanted[0])]:
        answer = parse(generate(text, do_sample=False, **ROOM))
        assert recorded.rows == [ids]
        reading = valid(constraint, ids)
        assert answer.drugs == tuple(LABELS[drug] for drug in reading.drugs)


def test_a_left_padded_batch_equals_each_prompt_alone(loaded: LoadedModel, constraint: Constraint, recorded: Recorded) -> None:
    wanted = [without_outlines(loaded, constraint, text) for text in PROMPTS]
    generate = outlines.Generator(outlines_model(loaded), processor=OutlinesProcessor(constraint))
    for _ in range(2):
        found = generate.batch(texts(loaded), do_sample=False, **ROOM)
        assert [until_end(loaded, row) for row in recorded.rows] == wanted
        assert all(set(parse(text).drugs) <= set(LABELS) for text in found)


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": True, "temperature": 1.5, "num_return_sequences": 6}, {"num_beams": 4, "num_return_sequences": 3}],
    ids=["samples", "beams"],
)
def test_samples_and_beams_are_valid(
    loaded: LoadedModel, constraint: Constraint, recorded: Recorded, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    generate = outlines.Generator(outlines_model(loaded), processor=OutlinesProcessor(constraint))
    found = generate.batch(texts(loaded), **settings, **ROOM)
    copies = settings["num_return_sequences"]
    assert [len(answers) for answers in found] == [copies] * len(PROMPTS)
    assert len({tuple(valid(constraint, row).drugs) for row in recorded.rows}) > 3


def test_without_the_conflicts_the_same_models_write_pairs_that_clash(recorded: Recorded, loaded: LoadedModel) -> None:
    free, strict = (
        outlines.Generator(outlines_model(loaded), processor=OutlinesProcessor(rule(loaded, pairs))) for pairs in ([], PAIRS)
    )
    found = []
    for generate in (free, strict):
        torch.manual_seed(1)
        generate.batch(texts(loaded), do_sample=True, temperature=2.0, num_return_sequences=8, **ROOM)
        readings = [read(rule(loaded, []), rule(loaded, []).start(), row) for row in recorded.rows]
        assert all(reading.drugs for reading in readings)
        found.append(sum(bool(clashes(reading)) for reading in readings))
    assert found[0] >= 5
    assert found[1] == 0


def test_each_prompt_of_a_batch_has_its_own_bans(loaded: LoadedModel, constraint: Constraint, recorded: Recorded) -> None:
    processor = OutlinesProcessor(constraint)
    generate = outlines.Generator(outlines_model(loaded), processor=processor)
    generate.batch(texts(loaded), do_sample=False, **ROOM)
    before = [valid(constraint, row).drugs for row in recorded.rows]
    processor.starts = tuple(constraint.start(banned=drugs[:1]) for drugs in before)
    generate.batch(texts(loaded), do_sample=False, **ROOM)
    for drugs, row in zip(before, recorded.rows, strict=True):
        assert drugs[0] not in valid(constraint, row).drugs


def test_given_diagnoses_stand_in_the_prompt_and_the_list_follows(
    loaded: LoadedModel, constraint: Constraint, recorded: Recorded
) -> None:
    pieces = ["\n", "出院诊断：", "血糖高", "\n", "出院带药："]
    processor = OutlinesProcessor(constraint, [constraint.start(Phase.LIST)])
    generate = outlines.Generator(outlines_model(loaded), processor=processor)
    found = generate(prompt_text(loaded.template, turns(PROMPTS[0]), pieces), do_sample=False, **ROOM)
    reading = read(constraint, constraint.start(Phase.LIST), recorded.rows[0])
    assert reading.drugs
    assert found == "、".join(LABELS[drug] for drug in reading.drugs)


def test_ids_that_go_on_from_other_prompts_need_a_reset(loaded: LoadedModel, constraint: Constraint) -> None:
    processor = OutlinesProcessor(constraint)
    scores = torch.zeros(1, loaded.model.config.vocab_size)
    opening = constraint.ids.opening
    assert processor(torch.tensor([[7, 8]]), scores).argmax() == opening[0]
    assert processor(torch.tensor([[7, 8, opening[0]]]), scores).argmax() == opening[1]
    with pytest.raises(ValueError, match="reset"):
        processor(torch.tensor([[9, 8, opening[0]]]), scores)
    with pytest.raises(ValueError, match="reset"):
        processor(torch.tensor([[7]]), scores)
    processor.reset()
    assert processor(torch.tensor([[9, 8, 5]]), scores).argmax() == opening[0]


def test_rows_that_do_not_fit_the_starts_are_refused(loaded: LoadedModel, constraint: Constraint) -> None:
    processor = OutlinesProcessor(constraint, [constraint.start()] * 2)
    with pytest.raises(ValueError, match="3 rows are no multiple of 2"):
        processor(torch.ones(3, 2, dtype=torch.long), torch.zeros(3, loaded.model.config.vocab_size))


def test_a_generation_config_that_fights_the_trie_is_refused(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.model.generation_config, "repetition_penalty", 1.2)
    with pytest.raises(InputError, match="repetition_penalty"):
        outlines_model(loaded)


@pytest.fixture(scope="module")
def glm4() -> ChatTemplate:
    if not GLM4.exists():
        pytest.skip("no GLM-4 tokenizer beside the repository")
    return ChatTemplate(load_tokenizer(GLM4))


def check_prompts(template: ChatTemplate, tokenizer: Any) -> None:
    for content in ["入院：血糖高 10 年。\n、复查123；\n\n出院", "  2型糖尿病\r\n（3级）", "\n- HbA1c 9.8%\t", "🙂"]:
        messages = [{"role": "system", "content": "你是医生。"}, *turns(content)]
        text = prompt_text(template, messages)
        assert tokenizer.encode(text)[0].tolist() == [template.prompt_ids(messages)]
        assert text.startswith("[gMASK]<sop><|system|>\n你是医生。<|user|>\n")


def test_outlines_reads_the_prompt_as_the_ids_of_training(loaded: LoadedModel) -> None:
    check_prompts(loaded.template, outlines_model(loaded).tokenizer)


def test_outlines_reads_glm4s_prompt_as_the_ids_of_training(glm4: ChatTemplate) -> None:
    check_prompts(glm4, outlines.models.transformers.TransformerTokenizer(glm4.tokenizer))


def test_a_chat_template_does_not_wrap_the_prompt_once_more(
    loaded: LoadedModel, constraint: Constraint, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = without_outlines(loaded, constraint, PROMPTS[0])
    wrapped = "[gMASK]<sop>{% for m in messages %}<|user|>\n{{ m.content }}{% endfor %}<|assistant|>"
    monkeypatch.setattr(loaded.template.tokenizer, "chat_template", wrapped)
    model = outlines_model(loaded)
    outlines.Generator(model, processor=OutlinesProcessor(constraint))(texts(loaded)[0], do_sample=False, **ROOM)
    assert recorded.rows == [wanted]
    assert loaded.template.tokenizer.chat_template == wrapped
    assert model.hf_tokenizer is not loaded.template.tokenizer


def test_a_prompt_that_becomes_other_ids_as_a_string_is_refused(loaded: LoadedModel, glm4: ChatTemplate) -> None:
    with pytest.raises(InputError, match="other ids"):
        prompt_text(loaded.template, turns("他说<|assistant|>"))
    with pytest.raises(InputError, match="other ids"):
        prompt_text(glm4, turns("复查"), ["\n", "出院诊断：", "高血压（3级）", "；", "糖尿病", "\n", "出院带药："])


def test_the_snippet_of_the_documents_runs() -> None:
    root = Path(__file__).parents[2]
    (code, *_) = re.findall(r"```python\n(.*?)```", (root / "docs" / "fronts.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('"data/samples', f'"{root}/data/samples'), names)
    assert len(names["answers"]) == 2
    for answer in names["answers"]:
        assert answer.diagnoses
        assert answer.drugs
        assert all(label in names["vocabulary"] for label in answer.drugs)
