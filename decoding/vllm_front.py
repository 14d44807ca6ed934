"""The constraint inside vLLM: one class for each of its two model runners, over the same mask.

    vllm serve MODEL --logits-processors yaofang.decoding.vllm_front:V1AnswerProcessor     # VLLM_USE_V2_MODEL_RUNNER=0
    vllm serve MODEL --logits-processors yaofang.decoding.vllm_front:V2AnswerProcessor     # the newer runner, from 0.32

Knows vLLM's calls; what may be written is `decoding.constraint`'s. vLLM need not be installed to import this module.

**Every request is masked**, also one that asks for nothing: no request can have T1 pairs written. What a request may say,
in `SamplingParams.extra_args` (`vllm_xargs` over HTTP), is in `ARGUMENTS`; `extra_args` builds and checks it. What holds for
the whole engine is in `EngineSettings`, handed over as `additional_config={"yaofang": {...}}`. Other texts need another engine.

**V1** (`vllm.v1.sample.logits_processor`, 0.10 to today): the batch is a row a request; `update_state` is told which rows were
removed, added and moved, in that order, and gets each request's list of generated ids, which vLLM goes on filling. With
asynchronous scheduling vLLM fills them in only for classes named by `--logits-processors` (vLLM issue 52461), so
this class must not be an entry point; ids that were not filled in raise. V1 refuses speculative decoding.

**V2** (`vllm.v1.worker.gpu.sample.logits_processor`, vLLM pull request 56497): a request keeps one slot; `apply` gets
which slot each row is, and reads the ids from the runner's token history. A request under speculative decoding has a row
for each draft token, whose ids are in the call's `input_ids` only.

Both were built from vLLM's documents and sources, where the second still calls itself subject to change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from yaofang.data.answer import DRUG_SEPARATOR
from yaofang.decoding.constraint import Phase, State
from yaofang.decoding.processors import AnswerMask, constraint_for
from yaofang.glm.loading import load_tokenizer
from yaofang.glm.template import ChatTemplate
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError

NAME = "yaofang"
PHASES = {"opening": Phase.OPENING, "diagnoses": Phase.DIAGNOSES, "list": Phase.LIST}
ARGUMENTS = {
    f"{NAME}_phase": "where the answer goes on from: opening (as if not given), diagnoses, or list",
    f"{NAME}_banned": "labels that must not be listed: a list, or one string with 、 between them",
}
NEUTRAL: dict[str, tuple[object, ...]] = {
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "min_tokens": (0,),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "ignore_eos": (False,),
    "structured_outputs": (None,),
    "guided_decoding": (None,),
    "thinking_token_budget": (None,),
}
"""Options of vLLM's sampling that push ids up or down beside the mask, with the values that do nothing."""
log = logging.getLogger(__name__)


def _base(module: str) -> Any:
    """vLLM's LogitsProcessor of a module, which its loader wants a subclass of; `object` where this vLLM has none."""
    try:
        return import_module(module).LogitsProcessor
    except ImportError:
        return object


V1Base = _base("vllm.v1.sample.logits_processor")
V2Base = _base("vllm.v1.worker.gpu.sample.logits_processor")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What holds for every request of an engine: `additional_config={"yaofang": {...}}`."""

    vocabulary: str | None = None
    """Path of the list of labels; None: the bundled one."""
    tokenizer: str | None = None
    """Folder of the tokenizer; None: the engine's own, which must be a folder then."""
    min_drugs: int = 1
    max_drugs: int | None = 30
    max_diagnosis_tokens: int = 256

    @classmethod
    def of(cls, vllm_config: Any) -> EngineSettings:
        """The settings in a VllmConfig. Raises InputError for one that is unknown."""
        config = vllm_config.additional_config
        given = config.get(NAME, {}) if isinstance(config, Mapping) else {}
        known = {field.name for field in fields(cls)}
        for name in sorted(set(given) - known):
            raise InputError(f"no such setting: {name}", field="additional_config", way_out=f"Use {', '.join(sorted(known))}.")
        return cls(**given)


def extra_args(vocabulary: Vocabulary, *, phase: str = "opening", banned: Iterable[str] = ()) -> dict[str, object]:
    """What to put into `SamplingParams.extra_args`. Raises InputError for a phase or a label that is unknown."""
    labels = list(banned)
    for label in labels:
        if label not in vocabulary:
            raise InputError(f"{label} is not in the vocabulary", field=f"{NAME}_banned", way_out="Give its own labels.")
    args: dict[str, object] = {f"{NAME}_phase": phase, f"{NAME}_banned": DRUG_SEPARATOR.join(labels)}
    check_arguments(args)
    return args


def check_arguments(args: Mapping[str, object]) -> None:
    """Raise InputError for what `ARGUMENTS` does not hold. Keys that do not begin with yaofang_ are others'."""
    for name in args:
        if name.startswith(f"{NAME}_") and name not in ARGUMENTS:
            raise InputError(f"no such argument: {name}", field="extra_args", way_out=f"Use {', '.join(ARGUMENTS)}.")
    phase = args.get(f"{NAME}_phase", "opening")
    if not isinstance(phase, str) or phase not in PHASES:
        raise InputError(f"no such phase: {phase!r}", field=f"{NAME}_phase", way_out=f"Use {', '.join(PHASES)}.")
    banned = args.get(f"{NAME}_banned", "")
    if not isinstance(banned, str) and not (isinstance(banned, list) and all(isinstance(each, str) for each in banned)):
        raise InputError("neither a string nor a list of strings", field=f"{NAME}_banned", way_out="Give labels.")


class _Front:
    """What both classes share: settings, a request's start, and the mask."""

    def __init__(self, vllm_config: Any) -> None:
        settings = EngineSettings.of(vllm_config)
        self.vocabulary = load_vocabulary(settings.vocabulary)
        template = ChatTemplate(load_tokenizer(Path(settings.tokenizer or vllm_config.model_config.tokenizer)))
        self.constraint = constraint_for(
            template,
            self.vocabulary,
            load_conflicts(self.vocabulary),
            min_drugs=settings.min_drugs,
            max_drugs=settings.max_drugs,
            max_diagnosis_tokens=settings.max_diagnosis_tokens,
        )
        self._mask = AnswerMask(self.constraint)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request when it comes in. Raises InputError, a ValueError, that names the option.

        Labels cannot be checked here, where no engine is: see `start_of`.
        """
        for name, neutral in NEUTRAL.items():
            if getattr(sampling_params, name, neutral[0]) not in neutral:
                raise InputError("this option fights the constraint", field=name, way_out=f"Leave {name} out.")
        check_arguments(sampling_params.extra_args or {})

    def start_of(self, sampling_params: Any) -> State:
        """The state that a request's answer begins in.

        A label to be banned that is not in the vocabulary may be a misspelt one: the list then stays empty. To
        raise here would end the engine for everyone.
        """
        args = sampling_params.extra_args or {}
        banned = args.get(f"{NAME}_banned", "")
        labels = [each for each in (banned.split(DRUG_SEPARATOR) if isinstance(banned, str) else banned) if each]
        phase = PHASES[args.get(f"{NAME}_phase", "opening")]
        if not all(label in self.vocabulary for label in labels):
            log.error("a request bans a label that is not in the vocabulary: its list stays empty")
            return self.constraint.start(phase, only=())
        return self.constraint.start(phase, banned=[self.vocabulary.index(label) for label in labels])

    def _masked(
        self, logits: torch.Tensor, rows: Sequence[int], starts: Sequence[State], ids: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """`logits` [all rows, vocabulary] with `rows` masked; rows of no request are left alone."""
        if len(rows) == len(logits):
            return self._mask(starts, ids, logits)
        logits[rows] = self._mask(starts, ids, logits[rows])
        return logits


class V1AnswerProcessor(_Front, V1Base):  # type: ignore[valid-type, misc]
    """The constraint for vLLM's V1 interface of logits processors."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        _Front.__init__(self, vllm_config)
        self._requests: dict[int, tuple[State, Sequence[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """No: the best id is often one that the mask takes away."""
        return False

    @classmethod
    def needs_output_token_ids(cls) -> bool:
        """Yes: a row's state follows from its ids (asked by vLLM versions that otherwise leave placeholders)."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Take over a `BatchUpdate`: rows removed, then added (row, params, prompt ids, ids), then moved, each in order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._requests.pop(row, None)
        for row, params, _, ids in batch_update.added:
            self._requests[row] = self.start_of(params), ids
        for source, target, direction in batch_update.moved:
            self._move(source, target, swap=direction.name == "SWAP")

    def _move(self, source: int, target: int, *, swap: bool) -> None:
        moved, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
        if moved is not None:
            self._requests[target] = moved
        if swap and replaced is not None:
            self._requests[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` [requests, vocabulary] with -inf where the ids so far forbid. RuntimeError if vLLM withheld these."""
        rows = sorted(self._requests)
        if not rows:
            return logits
        starts, ids = [self._requests[row][0] for row in rows], [self._requests[row][1] for row in rows]
        if any(-1 in each for each in ids):
            raise RuntimeError(
                "vLLM left placeholders where generated ids belong: name this class by --logits-processors (not by an entry "
                "point), or turn asynchronous scheduling off (--no-async-scheduling)"
            )
        return self._masked(logits, rows, starts, ids)


class V2AnswerProcessor(_Front, V2Base):  # type: ignore[valid-type, misc]
    """The constraint for the logits processors of vLLM's model runner V2."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        _Front.__init__(self, vllm_config)
        self._history = req_states
        self._starts: dict[int, State] = {}

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request begins, or goes on, in a slot. Always true: every request is masked."""
        self._starts[req_idx] = self.start_of(sampling_params)
        return True

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """`logits` [rows, vocabulary] with -inf where the ids so far forbid; `ctx` is a `LogitsContext`."""
        slots = ctx.expanded_idx_mapping.tolist()
        rows = [row for row, slot in enumerate(slots) if slot in self._starts]
        if not rows:
            return logits
        ids = self._generated(ctx, slots)
        return self._masked(logits, rows, [self._starts[slots[row]] for row in rows], [ids[row] for row in rows])

    def _generated(self, ctx: Any, slots: Sequence[int]) -> list[list[int]]:
        """Each row's generated ids: what its slot's history holds up to the row's position, then the row's draft tokens."""
        positions, places, fed = (part.tolist() for part in (ctx.pos, ctx.expanded_local_pos, ctx.input_ids))
        drafts = {(slot, place): token for slot, place, token in zip(slots, places, fed, strict=True)}
        prompts = [int(self._history.prompt_len.np[slot]) for slot in slots]
        # A row's position is that of the id fed to it: the last one that is committed, or its last draft.
        counts = [
            max(0, position - place + 1 - prompt) for position, place, prompt in zip(positions, places, prompts, strict=True)
        ]
        committed = self._committed(slots, prompts, max(counts, default=0))
        return [
            ids[:count] + [drafts[slot, each] for each in range(1, place + 1)]
            for ids, count, slot, place in zip(committed, counts, slots, places, strict=True)
        ]

    def _committed(self, slots: Sequence[int], prompts: Sequence[int], width: int) -> list[list[int]]:
        """The `width` ids after each slot's prompt, in one copy from the device."""
        history: torch.Tensor = self._history.all_token_ids.gpu
        columns = torch.tensor(prompts)[:, None] + torch.arange(width)
        columns = columns.clamp(max=history.shape[1] - 1).to(history.device)
        found: list[list[int]] = history[torch.tensor(slots, device=history.device)[:, None], columns].tolist()
        return found
