"""The two classes for vLLM under its documented calls, with batches that are shuffled as vLLM shuffles them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from yaofang.data.answer import parse
from yaofang.decoding import vllm_front
from yaofang.decoding.constraint import Phase, State
from yaofang.decoding.vllm_front import EngineSettings, V1AnswerProcessor, V2AnswerProcessor, extra_args
from yaofang.glm.loading import BUNDLED, load_tokenizer
from yaofang.glm.template import ChatTemplate
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

ROWS = 16
LISTS = 200
CPU = torch.device("cpu")
VOCABULARY = load_vocabulary()
T1 = load_conflicts(VOCABULARY).tiers == 1


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(load_tokenizer(BUNDLED))


def config(**settings: object) -> Any:
    given = {"max_diagnosis_tokens": 3, "max_drugs": 12, **settings}
    return SimpleNamespace(additional_config={"yaofang": given}, model_config=SimpleNamespace(tokenizer=str(BUNDLED)))


# What vLLM hands over, with the fields of its own classes that a logits processor reads.


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list[int]
    added: list[tuple[int, Any, list[int], list[int]]]
    moved: list[tuple[int, int, MoveDirectionality]]


@dataclass
class SamplingParams:
    extra_args: dict[str, object] | None = None
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    bad_words: list[str] | None = None


@dataclass(frozen=True)
class LogitsContext:
    expanded_idx_mapping: torch.Tensor
    idx_mapping: torch.Tensor
    idx_mapping_np: Any
    expanded_local_pos: torch.Tensor
    input_ids: torch.Tensor
    pos: torch.Tensor
    seq_lens_upper_bound_np: Any


@dataclass(eq=False)
class Request:
    """One list being written."""

    params: SamplingParams
    prompt: list[int]
    ids: list[int] = field(default_factory=list)

    @property
    def banned(self) -> set[str]:
        return set(str((self.params.extra_args or {}).get("yaofang_banned", "")).split("、")) - {""}


class Clinic:
    """Requests that come and go, random logits, and a check of each list on its text."""

    def __init__(self, template: ChatTemplate, front: V1AnswerProcessor | V2AnswerProcessor, seed: int, lists: int) -> None:
        self.random = np.random.default_rng(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.template = template
        self.front = front
        self.left = lists
        self.waiting: list[Request] = []
        self.drugs: list[int] = []
        self.clashes = 0
        self.size = template.size + 40  # rows of the model that no token has
        self.end = front.constraint.ids.end

    def arriving(self) -> Request:
        """A new request, or one that was pushed out before it ended."""
        if self.waiting and (not self.left or self.random.random() < 0.5):
            return self.waiting.pop()
        self.left -= 1
        labels = self.random.choice(len(VOCABULARY), 40, replace=False)
        banned = [VOCABULARY.labels[each] for each in labels] if self.random.random() < 0.5 else []
        args = [None, {}, {"others": 1}, dict(extra_args(VOCABULARY, banned=banned))][self.random.integers(4)]
        # Prompts hold separators and ends as any text does: ids of the prompt must not count as the row's own.
        prompt = self.random.integers(0, self.template.size, self.random.integers(1, 9)).tolist()
        return Request(SamplingParams(args), [*prompt, self.end])

    def logits(self, rows: int) -> torch.Tensor:
        logits = torch.randn(rows, self.size, generator=self.torch) * 3
        logits[:, self.end] -= 6  # long lists
        return logits

    def ended(self, request: Request) -> bool:
        if request.ids[-1:] != [self.end]:
            return False
        text = self.template.decode(request.ids)
        labels = parse(text).drugs
        assert text.startswith("\n出院诊断：")
        assert labels
        assert all(label in VOCABULARY for label in labels), "outside"
        assert len(set(labels)) == len(labels), "repeat"
        assert not request.banned & set(labels), "banned"
        places = [VOCABULARY.index(label) for label in labels]
        self.clashes += bool(T1[np.ix_(places, places)][~np.eye(len(places), dtype=bool)].any())
        self.drugs.append(len(labels))
        return True

    @property
    def open(self) -> bool:
        return self.left > 0 or bool(self.waiting)


def run_v1(clinic: Clinic) -> None:
    """The persistent batch of the V1 runner, its changes made in the order that vLLM's documents give."""
    batch: list[Request] = []
    random, front = clinic.random, clinic.front
    while batch or clinic.open:
        gone = [row for row, request in enumerate(batch) if clinic.ended(request)]
        pushed = [row for row in range(len(batch)) if row not in gone and random.random() < 0.01]
        clinic.waiting += [batch[row] for row in pushed]
        empty, added, moved = sorted(gone + pushed), [], []
        while clinic.open and len(batch) - len(empty) < ROWS and random.random() < 0.8:
            request = clinic.arriving()
            row = empty.pop(0) if empty else len(batch)
            batch[row : row + 1] = [request]
            added.append((row, request.params, request.prompt, request.ids))
        removed = list(empty)
        while empty:
            last = len(batch) - 1
            if last not in empty:
                batch[empty[0]] = batch[last]
                moved.append((last, empty[0], MoveDirectionality.UNIDIRECTIONAL))
            empty.remove(last if last in empty else empty[0])
            batch.pop()
        for _ in range(random.integers(3) if len(batch) > 1 else 0):
            a, b = (int(row) for row in random.choice(len(batch), 2, replace=False))
            batch[a], batch[b] = batch[b], batch[a]
            moved.append((a, b, MoveDirectionality.SWAP))
        changed = removed or added or moved
        front.update_state(BatchUpdate(len(batch), removed[::-1], added, moved) if changed else None)
        if batch:
            for request, token in zip(batch, front.apply(clinic.logits(len(batch))).argmax(-1).tolist(), strict=True):
                request.ids.append(token)


class History:
    """The V2 runner's slots: ids of prompt and answer in one tensor, as a processor is given them."""

    def __init__(self, slots: int, length: int) -> None:
        self.device = CPU
        self.all_token_ids = SimpleNamespace(gpu=torch.full((slots, length), 7, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(np=np.zeros(slots, dtype=np.int32))

    def write(self, slot: int, ids: list[int]) -> None:
        self.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)


def run_v2(clinic: Clinic, history: History, *, speculate: bool) -> None:
    """The slots of the V2 runner: rows in another order at each step, prompts read in parts, drafts of any worth."""
    running: dict[int, Request] = {}
    unread: dict[int, int] = {}
    free = list(range(ROWS))
    random, front = clinic.random, clinic.front
    while running or clinic.open:
        for slot in [slot for slot, request in running.items() if clinic.ended(request) or random.random() < 0.01]:
            request = running.pop(slot)
            if request.ids[-1:] != [clinic.end]:
                clinic.waiting.append(request)
            free.append(slot)
        while clinic.open and free and random.random() < 0.8:
            slot = free.pop(int(random.integers(len(free))))
            request = running[slot] = clinic.arriving()
            history.prompt_len.np[slot] = len(request.prompt)
            history.write(slot, request.prompt + request.ids)
            unread[slot] = int(random.integers(len(request.prompt + request.ids)))
            assert front.add_request(slot, request.params)
        order = [int(slot) for slot in random.permutation([*running])]
        rows = [row for slot in order for row in rows_of(clinic, slot, running[slot], unread.get(slot, 0), speculate)]
        if not rows:
            continue
        slots, places, positions, fed = (torch.tensor(part) for part in zip(*rows, strict=True))
        context = LogitsContext(slots, torch.tensor(order), np.array(order), places, fed, positions, positions.numpy())
        chosen = front.apply(clinic.logits(len(rows)), context).argmax(-1).tolist()
        for slot in order:
            mine = [row for row, (owner, *_) in enumerate(rows) if owner == slot]
            if unread.pop(slot, 0):
                continue
            request = running[slot]
            for row in mine:
                request.ids.append(chosen[row])
                if chosen[row] == clinic.end or row == mine[-1] or chosen[row] != rows[row + 1][3]:
                    break
            history.write(slot, request.prompt + request.ids)


def rows_of(clinic: Clinic, slot: int, request: Request, unread: int, speculate: bool) -> list[tuple[int, int, int, int]]:
    """(slot, place among the request's rows, position, id fed): one row, and one for each draft."""
    ids = request.prompt + request.ids
    last = len(ids) - 1 - unread
    drafts: list[int] = []
    if speculate and not unread:
        constraint, state = clinic.front.constraint, clinic.front.start_of(request.params)
        for token in request.ids:
            state = constraint.step(state, token)
        for _ in range(clinic.random.integers(4)):
            junk = clinic.random.random() < 0.2
            drafts.append(int(clinic.random.integers(clinic.size) if junk else constraint.allowed(state)[-1]))
            state = constraint.step(state, drafts[-1])
    return [(slot, place, last + place, token) for place, token in enumerate([ids[last], *drafts])]


def v1(template: ChatTemplate, seed: int, lists: int = LISTS) -> Clinic:
    clinic = Clinic(template, V1AnswerProcessor(config(), CPU, False), seed, lists)
    run_v1(clinic)
    return clinic


def v2(template: ChatTemplate, seed: int, lists: int = LISTS, *, speculate: bool = False) -> Clinic:
    history = History(ROWS, 600)
    clinic = Clinic(template, V2AnswerProcessor(config(), history), seed, lists)
    run_v2(clinic, history, speculate=speculate)
    return clinic


def v2_with_drafts(template: ChatTemplate, seed: int, lists: int = LISTS // 2) -> Clinic:
    return v2(template, seed, lists, speculate=True)


RUNNERS = [v1, v2, v2_with_drafts]


@pytest.mark.parametrize("runner", RUNNERS)
def test_lists_of_a_shuffled_batch_hold_nothing_outside_no_repeat_and_no_pair(
    template: ChatTemplate, runner: Callable[..., Clinic]
) -> None:
    clinic = runner(template, 3)
    assert len(clinic.drugs) >= LISTS // 2
    assert not clinic.open
    assert np.mean(clinic.drugs) > 4
    assert clinic.clashes == 0


@pytest.fixture
def _no_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = load_conflicts(VOCABULARY)
    empty.tiers = np.zeros_like(empty.tiers)
    monkeypatch.setattr(vllm_front, "load_conflicts", lambda vocabulary: empty)


@pytest.mark.usefixtures("_no_conflicts")
@pytest.mark.parametrize("runner", RUNNERS)
def test_without_the_conflicts_the_same_batches_write_pairs(template: ChatTemplate, runner: Callable[..., Clinic]) -> None:
    assert runner(template, 3, lists=40).clashes > 2


def offered(front: V1AnswerProcessor, rows: int) -> list[list[int]]:
    """The ids that each row may choose among."""
    logits = torch.zeros(rows, int(front.constraint.ids.text.max()) + 64)
    return [torch.nonzero(row > -torch.inf)[:, 0].tolist() for row in front.apply(logits)]


def expected(front: V1AnswerProcessor, start: State, ids: list[int]) -> list[int]:
    for token in ids:
        start = front.constraint.step(start, token)
    return sorted(front.constraint.allowed(start).tolist())


@pytest.fixture(scope="module")
def front() -> V1AnswerProcessor:
    return V1AnswerProcessor(config(), CPU, False)


def test_removed_added_and_moved_are_taken_in_this_order(front: V1AnswerProcessor) -> None:
    opening = list(front.constraint.ids.opening)
    requests = [(SamplingParams(), opening[:written]) for written in (0, 1, 2)]
    added = [(row, params, [5], ids) for row, (params, ids) in enumerate(requests)]
    front.update_state(BatchUpdate(3, [], added, []))
    assert offered(front, 3) == [[opening[0]], [opening[1]], [opening[2]]]
    # Row 0 leaves, row 2 takes its place; a list comes to row 2 and is swapped with row 1.
    lists = SamplingParams({"yaofang_phase": "list"})
    moved = [(2, 0, MoveDirectionality.UNIDIRECTIONAL), (2, 1, MoveDirectionality.SWAP)]
    front.update_state(BatchUpdate(2, [0], [], moved[:1]))
    assert offered(front, 2) == [[opening[2]], [opening[1]]]
    written: list[int] = []
    front.update_state(BatchUpdate(3, [], [(2, lists, [5], written)], moved[1:]))
    start = front.constraint.start(Phase.LIST)
    assert offered(front, 3) == [[opening[2]], expected(front, start, []), [opening[1]]]
    # The list of ids is vLLM's own, and grows without a word.
    written.append(expected(front, start, [])[0])
    front.update_state(None)
    assert offered(front, 3)[1] == expected(front, start, written)
    front.update_state(BatchUpdate(0, [2, 1, 0], [], []))


def test_rows_of_no_request_are_left_alone(front: V1AnswerProcessor) -> None:
    assert offered(front, 1)[0] == list(range(len(offered(front, 1)[0])))
    front.update_state(BatchUpdate(2, [], [(1, SamplingParams(), [5], [])], []))
    rows = offered(front, 3)
    assert rows[0] == rows[2] == list(range(len(rows[0])))
    assert rows[1] == [front.constraint.ids.opening[0]]
    front.update_state(BatchUpdate(0, [1], [], []))


def test_ids_that_vllm_withheld_raise(front: V1AnswerProcessor) -> None:
    front.update_state(BatchUpdate(1, [], [(0, SamplingParams(), [5], [front.constraint.ids.opening[0], -1])], []))
    with pytest.raises(RuntimeError, match="--logits-processors"):
        offered(front, 1)
    front.update_state(BatchUpdate(0, [0], [], []))


def test_a_misspelt_ban_leaves_the_list_empty_and_writes_no_label_into_the_log(
    front: V1AnswerProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams({"yaofang_phase": "list", "yaofang_banned": ["阿司匹林", "阿斯匹林灵"]})
    start = front.start_of(params)
    assert expected(front, start, []) == [front.constraint.ids.end]
    assert "vocabulary" in caplog.text
    assert "阿斯匹林灵" not in caplog.text


@pytest.mark.parametrize("kind", [V1AnswerProcessor, V2AnswerProcessor])
@pytest.mark.parametrize(
    ("params", "named"),
    [
        (SamplingParams(repetition_penalty=1.1), "repetition_penalty"),
        (SamplingParams(min_tokens=5), "min_tokens"),
        (SamplingParams(bad_words=["糖"]), "bad_words"),
        (SamplingParams({"yaofang_phase": "header"}), "yaofang_phase"),
        (SamplingParams({"yaofang_phase": ["list"]}), "yaofang_phase"),
        (SamplingParams({"yaofang_ban": "甲"}), "yaofang_ban"),
        (SamplingParams({"yaofang_banned": 3}), "yaofang_banned"),
        (SamplingParams({"yaofang_banned": ["甲", 3]}), "yaofang_banned"),
    ],
)
def test_requests_that_fight_the_constraint_are_refused_by_name(kind: Any, params: SamplingParams, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind.validate_params(params)


@pytest.mark.parametrize("args", [None, {}, {"dry_base": 2}, {"yaofang_phase": "list"}, {"yaofang_banned": ["甲"]}])
def test_other_requests_pass(args: dict[str, object] | None) -> None:
    params = SamplingParams(args)
    for kind in (V1AnswerProcessor, V2AnswerProcessor):
        assert kind.validate_params(params) is None
    assert params == SamplingParams(args), "checking a request does not change it"


def test_extra_args_of_a_client_are_checked_against_the_vocabulary() -> None:
    labels = VOCABULARY.labels[:2]
    args = extra_args(VOCABULARY, phase="list", banned=labels)
    assert args == {"yaofang_phase": "list", "yaofang_banned": "、".join(labels)}
    V1AnswerProcessor.validate_params(SamplingParams(args))
    with pytest.raises(InputError, match="不是药"):
        extra_args(VOCABULARY, banned=["不是药"])
    with pytest.raises(InputError, match="phase"):
        extra_args(VOCABULARY, phase="header")


def test_settings_of_the_engine() -> None:
    assert EngineSettings.of(config(max_drugs=4)) == EngineSettings(max_drugs=4, max_diagnosis_tokens=3)
    assert EngineSettings.of(SimpleNamespace(additional_config={})) == EngineSettings()
    with pytest.raises(InputError, match="max_drug"):
        EngineSettings.of(config(max_drug=4))


def test_vllm_takes_the_classes_for_its_own() -> None:
    sample = pytest.importorskip("vllm.v1.sample.logits_processor", reason="vllm is not installed")
    assert issubclass(V1AnswerProcessor, sample.LogitsProcessor)
    assert {"SWAP", "UNIDIRECTIONAL"} == set(sample.MoveDirectionality.__members__)
    assert set(BatchUpdate.__dataclass_fields__) == set(sample.BatchUpdate.__dataclass_fields__)
    V1AnswerProcessor(config(), CPU, False)


def test_vllms_second_runner_takes_the_class_for_its_own() -> None:
    module = "vllm.v1.worker.gpu.sample.logits_processor"
    sample = pytest.importorskip(module, reason="vllm is not installed, or older than its model runner V2")
    assert issubclass(V2AnswerProcessor, sample.LogitsProcessor)
    needed = {"expanded_idx_mapping", "expanded_local_pos", "input_ids", "pos"}
    assert needed <= set(sample.LogitsContext.__dataclass_fields__)
    assert {"all_token_ids", "prompt_len"} <= set(sample.LogitsProcRequestState.__dataclass_fields__)
    V2AnswerProcessor(config(), History(ROWS, 600))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["V1AnswerProcessor", "V2AnswerProcessor"])
def test_vllm_itself_writes_valid_lists(template: ChatTemplate, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = pytest.importorskip("vllm", reason="vllm is not installed")
    if not torch.cuda.is_available():
        pytest.skip("vllm needs a card")
    if kind == "V2AnswerProcessor" and vllm_front.V2Base is object:
        pytest.skip("this vllm has no model runner V2 with logits processors")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "01"[kind.startswith("V2")])
    engine = vllm.LLM(
        model=str(BUNDLED),
        enforce_eager=True,
        gpu_memory_utilization=0.2,
        logits_processors=[f"yaofang.decoding.vllm_front:{kind}"],
        additional_config=config().additional_config,
    )
    prompts = [template.prompt_ids([{"role": "user", "content": f"血糖高{years}年。"}]) for years in range(40)]
    params = vllm.SamplingParams(temperature=1.5, max_tokens=400)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    for answer in answers:
        labels = parse(template.decode(answer.outputs[0].token_ids)).drugs
        places = [VOCABULARY.index(label) for label in labels]
        assert labels
        assert len(set(places)) == len(places)
        assert not T1[np.ix_(places, places)][~np.eye(len(places), dtype=bool)].any()
