"""The constraint in front of transformers: `model.generate(..., logits_processor=[AnswerProcessor(...)])`.

Knows tensors and how GLM-4's tokenizer writes the fixed parts of an answer. The rule of what may come next is
`decoding.constraint`'s alone; here it only becomes -inf in a row of logits. Greedy, sampling and beam search need nothing
from each other: a row's state follows from its ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from yaofang.data.answer import DIAGNOSIS_SEPARATOR, DRUG_SEPARATOR, HEADER, OPENING
from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.bias import Bias
from yaofang.decoding.constraint import Constraint, Ids, State
from yaofang.decoding.masking import LogitsMask
from yaofang.decoding.states import StatesByIds
from yaofang.glm.template import ChatTemplate
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

MASKED_TIER = 1
SHARE = 0.5
"""Of an answer's tokens of diagnoses, what one name of a list may take."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_new_tokens": (None, 0),
    "min_length": (None, 0),
    "bad_words_ids": (None, []),
    "sequence_bias": (None, {}),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "watermarking_config": (None,),
    "remove_invalid_values": (None, False),
}
"""Options of transformers' generation that push ids up or down behind the trie's back, or hide broken logits; with the values
that do nothing."""


def answer_ids(template: ChatTemplate) -> AnswerIds:
    """The answer's fixed parts under a tokenizer, and the ids allowed inside a diagnosis.

    Raises InputError if a separator or the newline is more than one token: they could not be told from text then.
    """
    newline = _one_id(template, "\n")
    between = _one_id(template, DIAGNOSIS_SEPARATOR)
    banned = {*template.special_ids, *template.ids_containing("\n"), *template.ids_containing(DIAGNOSIS_SEPARATOR)}
    return AnswerIds(
        opening=(newline, *template.encode(OPENING.removeprefix("\n"))),
        diagnosis_separator=between,
        newline=newline,
        header=tuple(template.encode(HEADER.removeprefix("\n"))),
        drug_separator=_one_id(template, DRUG_SEPARATOR),
        end=template.stop_id,
        ends=frozenset(template.stop_ids),
        # Rows of the model beyond `size` were never trained and are in no set.
        text=np.array([token for token in range(template.size) if token not in banned], dtype=np.int64),
    )


def _one_id(template: ChatTemplate, text: str) -> int:
    ids = template.encode(text)
    if len(ids) != 1:
        raise InputError(f"the tokenizer writes {text!r} as {len(ids)} tokens", way_out="Use a GLM-4 tokenizer.")
    return ids[0]


def constraint_for(
    template: ChatTemplate,
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    *,
    min_drugs: int = 1,
    max_drugs: int | None = None,
    max_diagnosis_tokens: int = 256,
    diagnoses: Sequence[str] | None = None,
) -> Constraint:
    """The constraint of a vocabulary under a tokenizer: pairs of tier T1 are never listed together.

    `diagnoses` are the only names that a diagnosis may have; None leaves them free text. Raises InputError for one of more than
    its `SHARE` of `max_diagnosis_tokens`: another diagnosis may only begin where the longest would still fit.
    """
    return Constraint(
        [template.encode(label) for label in vocabulary.labels],
        conflicts.tiers == MASKED_TIER,
        answer_ids(template),
        min_drugs=min_drugs,
        max_drugs=max_drugs,
        max_diagnosis_tokens=max_diagnosis_tokens,
        diagnoses=None if diagnoses is None else [_diagnosis(template, name, max_diagnosis_tokens) for name in diagnoses],
    )


def _diagnosis(template: ChatTemplate, name: str, tokens: int) -> list[int]:
    ids = template.encode(name)
    if len(ids) > SHARE * tokens:
        problem = f"{name[:20]}… takes {len(ids)} of the {tokens} tokens that an answer's diagnoses have"
        raise InputError(problem, field="--diagnosis-list", way_out="Leave it out, or allow more max_diagnosis_tokens.")
    return ids


class AnswerMask:
    """Logits that only the constraint's ids keep: what every front calls, and calls for every row at every step."""

    def __init__(self, constraint: Constraint, bias: Bias | None = None) -> None:
        self.constraint = constraint
        self._bias = bias
        self._states = StatesByIds(constraint)
        self._mask = LogitsMask()

    def __call__(self, starts: Sequence[State], rows: Ids | Sequence[Sequence[int]], scores: torch.Tensor) -> torch.Tensor:
        """`scores` [rows, vocabulary] with -inf where the ids so far forbid.

        `rows` are the generated ids, `starts` the states before them. Raises ValueError for NaN or +inf where an id is allowed,
        and if rows, starts and scores differ in number.
        """
        states = self._states.of(starts, rows)
        allowed = [self.constraint.allowed(state) for state in states]
        if self._bias is None:
            return self._mask(scores, allowed)
        return self._mask(scores, allowed, [self._bias.of(state, ids) for state, ids in zip(states, allowed, strict=True)])


class AnswerProcessor(LogitsProcessor):  # type: ignore[misc]
    """Lets `generate` write only what the constraint allows.

    `prompt_length` is the padded width of the prompts: ids after it are the row's own. `starts` holds a state for each
    prompt (`constraint.start(...)`), or is empty if all begin with the opening; beams and returned sequences of one prompt
    share its start. `bias` leans for or against single drugs. One object serves one call of `generate`, or its continuation.
    """

    def __init__(
        self, constraint: Constraint, prompt_length: int, starts: Sequence[State] = (), bias: Bias | None = None
    ) -> None:
        self._prompt_length = prompt_length
        self._starts = tuple(starts) or (constraint.start(),)
        self._each: tuple[State, ...] = ()
        self._mask = AnswerMask(constraint, bias)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] with -inf where the ids so far forbid. ValueError if rows and starts do not fit."""
        rows = input_ids.cpu().numpy()[:, self._prompt_length :]
        if len(rows) != len(self._each):
            copies, rest = divmod(len(rows), len(self._starts))
            if rest:
                raise ValueError(f"{len(rows)} rows are no multiple of {len(self._starts)} prompts")
            self._each = tuple(start for start in self._starts for _ in range(copies))
        return self._mask(self._each, rows, scores)


def check_generation_config(config: Any) -> None:
    """Refuse options of a transformers GenerationConfig that fight the trie. Raises InputError naming the option."""
    for name, neutral in NEUTRAL.items():
        if getattr(config, name, None) not in neutral:
            raise InputError(
                f"{name}={getattr(config, name)!r} fights the constraint: names share tokens, and only the trie knows the end",
                field=name,
                way_out=f"Leave {name} out.",
            )
    if getattr(config, "renormalize_logits", False) and (getattr(config, "num_beams", 1) or 1) > 1:
        raise InputError(
            "renormalised beam scores favour long names, whose forced tokens cost nothing",
            field="renormalize_logits",
            way_out="Leave renormalize_logits out.",
        )
