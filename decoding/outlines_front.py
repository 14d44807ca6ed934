"""The constraint in front of outlines 1.x: `outlines.Generator(model, processor=OutlinesProcessor(constraint))`.

    model = outlines_model(loaded)
    generate = outlines.Generator(model, processor=OutlinesProcessor(constraint))
    text = generate(prompt_text(loaded.template, messages), max_new_tokens=512)

Knows how outlines calls a processor and what it does to a prompt. What may be written is `decoding.constraint`'s.

**What outlines does** (1.3). `Generator` calls `reset()`, then transformers' `generate` with the processor, which at each
step is handed the ids [rows, prompt and generated] and the scores [rows, vocabulary]. Rows are the prompts in their order,
padded on the left to one width, each repeated for its beams or samples. Nothing says how wide the prompts are: it is
the width of the ids in the first call after `reset()`.

**What outlines does to a prompt.** It takes strings only and tokenises them itself, special tokens included; if the tokenizer
has a chat template, a string is first wrapped into it as a user's turn. `outlines_model` therefore hands over a copy of
the tokenizer without a chat template, and `prompt_text` writes the whole prompt, markers included, after checking that it
becomes the ids that the model was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import outlines
import torch
from outlines.processors import OutlinesLogitsProcessor

from yaofang.decoding.bias import Bias
from yaofang.decoding.constraint import Constraint, State
from yaofang.decoding.processors import AnswerProcessor, check_generation_config
from yaofang.glm.loading import LoadedModel
from yaofang.glm.template import PREFIX, ROLES, ChatTemplate
from yaofang.vocab.errors import InputError


class OutlinesProcessor(OutlinesLogitsProcessor):
    """Lets an `outlines.Generator` over a transformers model write only what the constraint allows.

    `starts` holds a state for each prompt of the next call (`constraint.start(...)`), or is empty if all begin with the
    opening; beams and samples of one prompt share its start. It may be set anew between calls of the generator. `bias`
    leans for or against single drugs.
    """

    def __init__(self, constraint: Constraint, starts: Sequence[State] = (), bias: Bias | None = None) -> None:
        super().__init__("torch")
        self.starts = tuple(starts)
        self._constraint = constraint
        self._bias = bias
        self._call: tuple[torch.Tensor, AnswerProcessor] | None = None

    def reset(self) -> None:
        """Forget the prompts: the next call brings new ones."""
        self._call = None

    def process_logits(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Scores [rows, vocabulary] with -inf where the ids so far forbid.

        Raises ValueError if rows and `starts` do not fit, and if the prompts changed without a `reset()`.
        """
        if self._call is None:
            inner = AnswerProcessor(self._constraint, input_ids.shape[1], self.starts, self._bias)
            self._call = input_ids.clone(), inner
        prompts, processor = self._call
        if not torch.equal(input_ids[:, : prompts.shape[1]], prompts):
            raise ValueError("other prompts than in the last call: outlines.Generator calls reset() first, do so too")
        return processor(input_ids, logits)


def plain_tokenizer(template: ChatTemplate) -> Any:
    """A copy of the template's tokenizer that outlines does not wrap prompts for. The original keeps its settings."""
    tokenizer = deepcopy(template.tokenizer)
    tokenizer.chat_template = None
    return tokenizer


def outlines_model(loaded: LoadedModel) -> outlines.models.Transformers:
    """The model as outlines wants it. Raises InputError if its generation config holds options that fight the trie."""
    check_generation_config(loaded.model.generation_config)
    model = outlines.from_transformers(loaded.model, plain_tokenizer(loaded.template))
    assert isinstance(model, outlines.models.Transformers)
    return model


def prompt_text(template: ChatTemplate, messages: Iterable[Mapping[str, str]], pieces: Iterable[str] = ()) -> str:
    """The prompt as one string: the turns, the assistant's marker, and what of the answer is given (`pieces`).

    Raises InputError if outlines would not read it as the ids of `template.prompt_ids(messages)` and of the pieces, each
    encoded alone: a turn holds the name of a special token, or a separator in the pieces merges with the mark before it.
    """
    turns, given = list(messages), list(pieces)
    wanted = template.prompt_ids(turns) + [token for piece in given for token in template.encode(piece)]
    said = [f"{ROLES[turn['role']]}\n{turn['content'].strip()}" for turn in turns]
    text = "".join([*PREFIX, *said, ROLES["assistant"], *given])
    if template.tokenizer(text)["input_ids"] != wanted:
        raise InputError(
            "as a string this prompt becomes other ids than the model was trained on",
            field="prompt",
            way_out="Take names of special tokens out of the text, or use transformers' generate, which takes ids.",
        )
    return text
