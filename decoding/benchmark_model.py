"""Times of decoding with a model: jump-forward, exact scoring of all drugs, and whole prediction beside a plain loop.

    yaofang bench decoding --out docs/results/decoding.json

Jump-forward and scoring are timed on a random model of GLM-4's architecture and width of logits, small in all else, with the
names as a given tokenizer writes them; prediction on the bundled model and records of the simulated ward. Each comparison
first checks that both sides say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from yaofang.data.records import Record
from yaofang.data.ward.simulate import simulate
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.generation import Generation, Row
from yaofang.decoding.peers import plain_trie
from yaofang.decoding.preparation import Task
from yaofang.decoding.processors import AnswerProcessor, constraint_for
from yaofang.decoding.reading import read
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.running import pad_left
from yaofang.decoding.scoring import Place, next_drugs
from yaofang.glm.loading import BUNDLED, LoadedModel, load_model, load_tokenizer
from yaofang.glm.template import ChatTemplate
from yaofang.glm.tiny import new_model, tiny_config
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary

PROMPT = 256
DRUGS = 6
"""Drugs of a timed list: the mean of CDrugRed's (arXiv 2510.21084) is 6.08."""
BATCHES = (8, 32, 128)
"""Batch sizes tried for scoring one label after another; the fastest counts."""
MANY = 3
"""Times as many rounds of whole prediction as of the other times: its ratio is near its goal, and a round is short."""
UNCACHED = 32
"""Labels scored without a cache; the time is taken as proportional to their number."""

WHAT_IT_IS = {
    "forwards_per_drug": "over the drug lists of simulated patients: ids that are a choice (jumping) or all ids (plain), a "
    "drug, separators and end included",
    "jump_forward_time": "seconds of the list phase with jump-forward over those without, same ids, by batch size",
    "jump_forward_time_generate": "the same over the list phase of transformers' generate with the same constraint as its "
    "processor",
    "scoring_vs_cached": "seconds of scoring all labels one by one on a copy of the prompt's cache, in the best batch size, "
    "over those in one forward over the trie",
    "scoring_vs_uncached": "the same without the cache, from a part of the labels",
    "predict_vs_generate": "records a second of Recommender over those of transformers' generate with "
    "prefix_allowed_tokens_fn (a trie without conflicts), same model, batch size and prompts; preparing the records is in both",
    "time_goes": "share of the seconds of Recommender: prepare (prompts), prefill, list (model forwards after the prefill, the "
    "audit's too), diagnoses (what these forwards take longer where diagnoses are generated), choices (constraint, mask and "
    "numbers), rest (drafts, audit, reading)",
}


def measure(tokenizer: Path | None = None, *, rounds: int = 5, records: int = 64, batch_size: int = 8) -> dict[str, Any]:
    """All figures as one JSON object; `WHAT_IT_IS` says what each is.

    Prediction comes first, in a process that has held no wider model, as where a user predicts; it takes `MANY` times the
    rounds.
    """
    predicted = prediction(simulate(1910, 1).test[:records], batch_size, rounds * MANY)
    loaded = wide_model(tokenizer)
    vocabulary = load_vocabulary()
    constraint = constraint_for(loaded.template, vocabulary, load_conflicts(vocabulary), min_drugs=DRUGS, max_drugs=DRUGS)
    lists = simulate(200, 1).train
    return {
        "forwards_per_drug": forwards_per_drug(loaded.template, lists),
        **jump(loaded, constraint, rounds),
        **scoring(loaded, constraint, rounds),
        **predicted,
        "what_it_is": WHAT_IT_IS,
    }


def wide_model(tokenizer: Path | None, *, hidden: int = 256, layers: int = 4, seed: int = 0) -> LoadedModel:
    """A random GLM with the rows of GLM-4-9B, or of the bundled tokenizer where no other is given."""
    template = ChatTemplate(load_tokenizer(tokenizer or BUNDLED))
    config = tiny_config(template, hidden=hidden, layers=layers, heads=8, kv_heads=2, intermediate=2 * hidden, context=2048)
    config.vocab_size = 151_552
    model = new_model(config, seed).eval()
    nothing = torch.device("cpu"), torch.float32, ()
    return LoadedModel(model, template, "random-wide", "-", *nothing, context=2048)


def forwards_per_drug(template: ChatTemplate, records: Sequence[Record]) -> dict[str, float]:
    """Model forwards that the records' lists take, plain and jumping; lists that the constraint refuses are left out."""
    vocabulary = load_vocabulary()
    constraint = constraint_for(template, vocabulary, load_conflicts(vocabulary))
    drugs = choices = ids = 0
    for record in records:
        state, own = constraint.start(Phase.LIST), 0
        tokens = constraint.list_ids([vocabulary.index(label) for label in record.drugs])
        for token in tokens:
            own += len(constraint.allowed(state)) > 1
            state = constraint.step(state, token)
        if state.phase == Phase.DONE:
            drugs, choices, ids = drugs + len(record.drugs), choices + own, ids + len(tokens)
    return {"plain": round(ids / drugs, 3), "jumping": round(choices / drugs, 3), "drugs": drugs}


def jump(loaded: LoadedModel, constraint: Constraint, rounds: int) -> dict[str, Any]:
    """Seconds of the list phase: jumping, one id after another, and transformers' generate."""
    ratios: dict[str, dict[str, float]] = {"jump_forward_time": {}, "jump_forward_time_generate": {}, "jump_forward_s": {}}
    for batch in (1, 8):
        prompts, start = _prompts(loaded, batch), constraint.start(Phase.LIST)
        seconds: dict[str, list[float]] = {"jumping": [], "plain": [], "generate": []}
        for round_ in range(rounds + 1):
            jumped, jumped_s = _list_phase(loaded, constraint, prompts, start, jump=True)
            plain, plain_s = _list_phase(loaded, constraint, prompts, start, jump=False)
            generated, generated_s = _generate(loaded, constraint, prompts, start)
            assert jumped == plain == generated, "the three ways write different ids"
            if round_:
                for name, value in zip(seconds, (jumped_s, plain_s, generated_s), strict=True):
                    seconds[name].append(value)
        middle = {name: median(values) for name, values in seconds.items()}
        ratios["jump_forward_time"][str(batch)] = round(middle["jumping"] / middle["plain"], 3)
        ratios["jump_forward_time_generate"][str(batch)] = round(middle["jumping"] / middle["generate"], 3)
        ratios["jump_forward_s"][str(batch)] = round(middle["jumping"], 4)
    return ratios


def _prompts(loaded: LoadedModel, batch: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    usable = np.array([i for i in range(loaded.template.size) if i not in loaded.template.special_ids])
    return [rng.choice(usable, PROMPT - 7 * number).tolist() for number in range(batch)]


def _list_phase(
    loaded: LoadedModel, constraint: Constraint, prompts: Sequence[Sequence[int]], start: State, *, jump: bool
) -> tuple[list[list[int]], float]:
    generation = Generation(
        [loaded], constraint, prompts, [start] * len(prompts), [300] * len(prompts), masses=False, jump=jump
    )
    begun = perf_counter()
    rows = generation.run()
    return [row.ids for row in rows], perf_counter() - begun


def _generate(
    loaded: LoadedModel, constraint: Constraint, prompts: Sequence[Sequence[int]], start: State
) -> tuple[list[list[int]], float]:
    """transformers' generate with the processor; the time of its prefill, measured alone, is taken off."""
    ids, seen = pad_left(prompts, loaded.template.pad_id)
    begun = perf_counter()
    with torch.inference_mode():
        loaded.model(input_ids=ids, attention_mask=seen, logits_to_keep=1, use_cache=True)
    prefill = perf_counter() - begun
    processor = AnswerProcessor(constraint, ids.shape[1], [start] * len(prompts))
    begun = perf_counter()
    with torch.inference_mode():
        output = loaded.model.generate(
            input_ids=ids, attention_mask=seen, logits_processor=[processor], do_sample=False, max_new_tokens=300
        )
    seconds = perf_counter() - begun - prefill
    rows = output[:, ids.shape[1] :].tolist()
    ends = constraint.ids.ends
    return [row[: next(at for at, token in enumerate(row) if token in ends) + 1] for row in rows], seconds


def scoring(loaded: LoadedModel, constraint: Constraint, rounds: int) -> dict[str, Any]:
    """All labels as the first drug of one prompt: in one forward over the trie, and one by one."""
    (prompt,) = _prompts(loaded, 1)
    start = constraint.start(Phase.LIST)
    generation = Generation([loaded], constraint, [prompt], [start], [1])
    generation.run()
    cache = generation.runs[0].cache
    place = [Place(0, 0, start)]
    (exact,) = next_drugs(generation, place)
    tree_s = [_timed(lambda: next_drugs(generation, place)) for _ in range(rounds)]
    cached_s: dict[int, list[float]] = {}
    worst = 0.0
    for batch in BATCHES:
        for round_ in range(rounds):
            begun = perf_counter()
            alone = _one_by_one(loaded, constraint, cache, len(prompt), generation.runs[0].logits[0], batch, start)
            cached_s.setdefault(batch, []).append(perf_counter() - begun)
            if not round_:
                worst = max(worst, float(np.abs(alone - exact).max()))
    assert worst < 1e-4, f"the two ways of scoring differ by {worst}"
    best = min(cached_s, key=lambda batch: median(cached_s[batch]))
    few = [[*prompt, *constraint.name(drug)] for drug in range(UNCACHED)]
    ids, seen = pad_left(few, loaded.template.pad_id)
    whole_s = [_timed(lambda: _whole(loaded, ids, seen)) for _ in range(rounds)]
    middle = median(tree_s)
    return {
        "scoring_vs_cached": round(median(cached_s[best]) / middle, 2),
        "scoring_vs_uncached": round(median(whole_s) * len(constraint.trie) / UNCACHED / middle, 2),
        "scoring_s": round(middle, 4),
        "scoring_best_batch": best,
        "scoring_worst_difference": worst,
    }


def _timed(work: Callable[[], object]) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


@torch.inference_mode()
def _whole(loaded: LoadedModel, ids: torch.Tensor, seen: torch.Tensor) -> None:
    """Labels behind the whole prompt; logits of the last places, as many as a name has ids at most."""
    loaded.model(input_ids=ids, attention_mask=seen, logits_to_keep=14, use_cache=False)


@torch.inference_mode()
def _one_by_one(
    loaded: LoadedModel,
    constraint: Constraint,
    prompt: DynamicCache,
    width: int,
    first: torch.Tensor,
    batch: int,
    start: State,
) -> np.ndarray:
    """P of every label, each read whole by the model, `batch` at a time on copies of the prompt's cache."""
    found = np.zeros(len(constraint.trie))
    for begin in range(0, len(found), batch):
        names = [constraint.name(drug) for drug in range(begin, min(begin + batch, len(found)))]
        longest = max(map(len, names))
        ids = torch.tensor([[*name, *[0] * (longest - len(name))] for name in names])
        cache = DynamicCache()
        for number, layer in enumerate(prompt.layers):
            part = (layer.keys[:, :, :width], layer.values[:, :, :width])
            cache.update(*(one.expand(len(names), -1, -1, -1) for one in part), number)
        logits = loaded.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        for row, name in enumerate(names):
            found[begin + row] = _p_of(constraint, name, first, logits[row], start)
    return found


def _p_of(constraint: Constraint, name: Sequence[int], first: torch.Tensor, logits: torch.Tensor, state: State) -> float:
    closing = [constraint.ids.drug_separator, constraint.ids.end]
    p = 1.0
    for depth in range(len(name) + 1):
        allowed = constraint.allowed(state)
        if len(allowed) > 1 and not (depth == len(name) and not constraint.could_grow(state)):
            said = (first if not depth else logits[depth - 1])[torch.from_numpy(allowed)].softmax(-1).numpy()
            wanted = closing if depth == len(name) else [name[depth]]
            p *= float(said[np.isin(allowed, wanted)].sum())
        if depth < len(name):
            state = constraint.step(state, name[depth])
    return p


def prediction(records: Sequence[Record], batch_size: int, rounds: int) -> dict[str, Any]:
    """Records a second of Recommender and of a plain loop, diagnoses given and generated."""
    clock = Clock(load_model(device="cpu"))
    vocabulary = load_vocabulary()
    conflicts = load_conflicts(vocabulary)
    hidden = [record.model_copy(update={"drugs": ()}) for record in records]
    result: dict[str, Any] = {"predict_vs_generate": {}, "records_per_second": {}, "time_goes": {}}
    lists = None
    for diagnoses in ("given", "generated"):
        recommender = Recommender([clock.loaded], vocabulary, conflicts, diagnoses=diagnoses, strategy="greedy")
        ways: dict[str, Callable[[], object]] = {
            "predict": lambda rx=recommender: rx.batch(hidden, batch_size),  # type: ignore[misc]
            "predict_batch_1": lambda rx=recommender: rx.batch(hidden, 1),  # type: ignore[misc]
            "generate": lambda rx=recommender: plain_loop(rx, hidden, batch_size),  # type: ignore[misc]
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        parts: list[dict[str, float]] = []
        for _ in range(rounds):
            for way, work in ways.items():
                clock.clear()
                with clock.choosing() if way == "predict" else nullcontext():
                    seconds[way].append(_timed(work))
                if way == "predict":
                    parts.append(clock.parts(seconds[way][-1], recommender, hidden))
        rates = {way: len(hidden) / median(values) for way, values in seconds.items()}
        result["predict_vs_generate"][diagnoses] = round(rates["predict"] / rates["generate"], 2)
        result["records_per_second"][diagnoses] = {way: round(rate, 2) for way, rate in rates.items()}
        result["time_goes"][diagnoses] = _shares(parts, median(seconds["predict"]), lists)
        lists = median(one["list"] for one in parts)
    return result


class Clock:
    """A model that notes the seconds of its forwards: of prompts, and after them."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self.loaded = replace(loaded, model=self)
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self.prefill = self.after = self.chosen = 0.0
        self._fresh = True

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """One forward."""
        return self._timed(self._model, *arguments, **named)

    def get_decoder(self) -> Any:
        """The model without its LM head, noted too."""
        decoder = self._model.get_decoder()
        noted = partial(self._timed, decoder)
        noted.layers = decoder.layers  # type: ignore[attr-defined]
        return noted

    def get_output_embeddings(self) -> Any:
        """The LM head, noted with the forward before it."""
        return partial(self._timed, self._model.get_output_embeddings())

    def _timed(self, module: Any, *arguments: Any, **named: Any) -> Any:
        if "input_ids" in named:
            # The mask of a prompt is made by the model; what is read after the prompts brings its own.
            mask = named.get("attention_mask")
            self._fresh = mask is None or mask.dim() == 2
        begun = perf_counter()
        output = module(*arguments, **named)
        spent = perf_counter() - begun
        self.prefill, self.after = self.prefill + spent * self._fresh, self.after + spent * (not self._fresh)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Note the seconds of choosing among what the models have said: constraint, mask and numbers."""
        own = Generation._step

        def timed(generation: Generation, rows: Sequence[Row]) -> None:
            begun = perf_counter()
            own(generation, rows)
            self.chosen += perf_counter() - begun

        Generation._step = timed  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            Generation._step = own  # type: ignore[method-assign]

    def parts(self, whole: float, recommender: Recommender, records: Sequence[Record]) -> dict[str, float]:
        """Where the `whole` seconds of the last prediction went; preparing the records is measured again, alone."""
        prepare = _timed(lambda: list(recommender.prepare.each(records)))
        parts = {"prepare": prepare, "prefill": self.prefill, "list": self.after, "choices": self.chosen}
        return {**parts, "rest": max(0.0, whole - sum(parts.values()))}


def _shares(parts: Sequence[dict[str, float]], whole: float, lists: float | None) -> dict[str, float]:
    """Medians of the parts, as shares. Where the same records' `lists` took so long alone, the diagnoses took the rest."""
    middle = {name: median(one[name] for one in parts) for name in parts[0]}
    if lists is not None:
        middle["diagnoses"], middle["list"] = max(0.0, middle["list"] - lists), min(middle["list"], lists)
    return {name: round(value / whole, 3) for name, value in middle.items()}


def plain_loop(recommender: Recommender, records: Sequence[Record], batch_size: int) -> list[list[int]]:
    """What one would write with transformers alone: batches in the records' order, generate, a trie as a Python function."""
    loaded, constraint = recommender.models[0], recommender.constraint
    tasks = [recommender.prepare(record) for record in records]
    allowed = PlainAnswer(constraint)
    found: list[list[int]] = []
    for at in range(0, len(tasks), batch_size):
        some: list[Task] = tasks[at : at + batch_size]
        ids, seen = pad_left([task.ids for task in some], loaded.template.pad_id)
        allowed.begin(ids.shape[1], some[0].given)
        with torch.inference_mode():
            output = loaded.model.generate(
                input_ids=ids,
                attention_mask=seen,
                prefix_allowed_tokens_fn=allowed,
                do_sample=False,
                max_new_tokens=max(task.limit for task in some),
            )
        for task, row in zip(some, output[:, ids.shape[1] :].tolist(), strict=True):
            found.append(read(constraint, task.start, row).drugs)
    return found


class PlainAnswer:
    """`prefix_allowed_tokens_fn` of the answer without conflicts: any text, then names of a plain trie."""

    def __init__(self, constraint: Constraint) -> None:
        ids = constraint.ids
        self._ids = ids
        self._trie = plain_trie(constraint.trie.names, ids.drug_separator, ids.end)
        self._text = [*ids.text.tolist(), ids.diagnosis_separator, ids.newline]
        self._most = constraint.max_diagnosis_tokens

    def begin(self, prompt: int, given: bool) -> None:
        """A new batch: the prompts' width, and whether the answer goes on in the list."""
        self._prompt, self._given = prompt, given

    def __call__(self, _: int, ids: torch.Tensor) -> list[int]:
        """The ids that may follow a row's `ids` [length]."""
        own = ids[self._prompt :].tolist()
        if not self._given:
            if self._ids.newline not in own:
                return self._text if len(own) < self._most else [self._ids.newline]
            after = own[own.index(self._ids.newline) + 1 :]
            if len(after) < len(self._ids.header):
                return [self._ids.header[len(after)]]
            own = after[len(self._ids.header) :]
        node: Any = self._trie
        for token in own:
            if token == self._ids.end:
                return [self._ids.end]
            node = self._trie if token == self._ids.drug_separator else node[token]
        return list(node)
