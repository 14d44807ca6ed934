"""Other libraries set up to write the same lists, so that `decoding.benchmark` can time them beside the constraint.

Each is given the fastest way its own interface has: matchers are kept and reset, batch calls are used where they are the
quicker ones, building is not timed. None knows conflicts or repeats: what is compared is the time to mask, not the rule.
xgrammar and llguidance come with `pip install 'yaofang[bench]'`; a package that is absent raises ImportError in `build`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Any, Protocol

import torch
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from yaofang.data.answer import DRUG_SEPARATOR
from yaofang.glm.template import ChatTemplate

Plain = dict[int, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """What every peer is to do: write names with the separator between them, at logits [rows, `width`]."""

    template: ChatTemplate
    labels: tuple[str, ...]
    width: int
    prompt: int
    """Ids of the prompt before each row's own."""

    @property
    def names(self) -> list[list[int]]:
        """The ids of each label, encoded alone."""
        return [self.template.encode(label) for label in self.labels]

    @property
    def separator(self) -> int:
        """The id between two names."""
        return self.template.encode(DRUG_SEPARATOR)[0]

    @property
    def regex(self) -> str:
        """A list of any of the labels, repeats and conflicts included."""
        # The longest first: an engine that prefers what stands first would drop the labels that go on from a shorter one.
        labels = sorted(self.labels, key=len, reverse=True)
        name = f"(?:{'|'.join(re.escape(label) for label in labels)})"
        return f"{name}(?:{DRUG_SEPARATOR}{name})*"


class Peer(Protocol):
    """A way to mask logits while lists are written."""

    labels: tuple[str, ...]
    """The labels it can write: all of the task's, but for outlines."""
    parts: dict[str, float]
    """Seconds of each part of the last call; empty where the library's own processor is called as a whole."""

    def begin(self, rows: int) -> None:
        """Start `rows` new lists."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids [rows, prompt + n], n growing by one a call -> masked scores [rows, width], in place or new."""


class PrefixFunction:
    """transformers' own processor with a function that walks a trie of plain dicts along the row's ids."""

    def __init__(self, task: Task) -> None:
        self.labels, self._prompt = task.labels, task.prompt
        self.parts: dict[str, float] = {}
        self._root = plain_trie(task.names, task.separator, task.template.stop_id)
        self._process = PrefixConstrainedLogitsProcessor(self._allowed, num_beams=1)

    def _allowed(self, _row: int, ids: torch.Tensor) -> list[int]:
        node = self._root
        for token in ids[self._prompt :].tolist():
            node = node[token]
        return list(node)

    def begin(self, rows: int) -> None:
        """Nothing to do: it keeps no state."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """A new tensor."""
        return torch.as_tensor(self._process(ids, scores))


def plain_trie(names: Sequence[Sequence[int]], separator: int, end: int) -> Plain:
    """Names as dicts of dicts by token, without conflicts: a separator leads back to the root, the end to nothing."""
    root: Plain = {}
    for name in names:
        node = root
        for token in name:
            node = node.setdefault(token, {})
        node[separator] = root
        node[end] = {}
    return root


class _Matchers(ABC):
    """A matcher a row: take the last token, fill a bitmask [rows, width / 32], apply it to the scores in place."""

    def __init__(self, task: Task) -> None:
        self.labels = task.labels
        self.parts: dict[str, float] = {}
        self._pool: list[Any] = []
        self._rows: list[Any] = []
        self._mask = torch.empty(0)
        self._width = task.width
        self._first = True

    def begin(self, rows: int) -> None:
        """Reset as many matchers, made when first needed."""
        self._pool += [self._matcher() for _ in range(rows - len(self._pool))]
        self._rows = self._pool[:rows]
        for matcher in self._rows:
            matcher.reset()
        self._mask = self._bitmask(rows)
        self._first = True

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores given, changed. RuntimeError if a token is refused."""
        started = perf_counter()
        if not self._first and not all(self._accept(ids[:, -1].tolist())):
            raise RuntimeError(f"{type(self).__name__} refused a token of a list")
        self._first = False
        advanced = perf_counter()
        self._fill()
        filled = perf_counter()
        self._apply(scores)
        applied = perf_counter()
        self.parts = {"advance": advanced - started, "fill": filled - advanced, "apply": applied - filled}
        return scores

    @abstractmethod
    def _matcher(self) -> Any: ...

    @abstractmethod
    def _bitmask(self, rows: int) -> torch.Tensor: ...

    @abstractmethod
    def _accept(self, tokens: list[int]) -> list[bool]: ...

    @abstractmethod
    def _fill(self) -> None: ...

    @abstractmethod
    def _apply(self, scores: torch.Tensor) -> None: ...


class XGrammar(_Matchers):
    """xgrammar: a matcher a row, filled as a batch; the kernel that it picks itself for scores on a CPU."""

    kernel = "auto"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._xgrammar: Any = import_module("xgrammar")
        tokens = self._xgrammar.TokenizerInfo.from_huggingface(
            task.template.tokenizer, vocab_size=task.width, stop_token_ids=[task.template.stop_id]
        )
        compiler = self._xgrammar.GrammarCompiler(tokens, max_threads=torch.get_num_threads())
        self._grammar = compiler.compile_grammar(self._xgrammar.Grammar.from_regex(task.regex))
        self._batch = self._xgrammar.BatchGrammarMatcher(max_threads=torch.get_num_threads())

    def _matcher(self) -> Any:
        return self._xgrammar.GrammarMatcher(self._grammar)

    def _bitmask(self, rows: int) -> torch.Tensor:
        return torch.as_tensor(self._xgrammar.allocate_token_bitmask(rows, self._width))

    def _accept(self, tokens: list[int]) -> list[bool]:
        # One by one: batch_accept_token takes longer at every number of rows.
        return [matcher.accept_token(token) for matcher, token in zip(self._rows, tokens, strict=True)]

    def _fill(self) -> None:
        self._batch.batch_fill_next_token_bitmask(self._rows, self._mask)

    def _apply(self, scores: torch.Tensor) -> None:
        self._xgrammar.apply_token_bitmask_inplace(scores, self._mask, backend=self.kernel)


class XGrammarCompiled(XGrammar):
    """xgrammar with its kernel for torch.compile, which is not its default on a CPU but may be quicker there."""

    kernel = "torch_compile"


class LLGuidance(_Matchers):
    """llguidance: a matcher a row; more than one are filled by its pool of threads."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        library = import_module("llguidance")
        self._torch: Any = import_module("llguidance.torch")
        tokens = import_module("llguidance.hf").from_tokenizer(
            task.template.tokenizer, n_vocab=task.width, eos_token=task.template.stop_id
        )
        self._first_matcher = library.LLMatcher(tokens, library.LLMatcher.grammar_from_regex(task.regex))
        if self._first_matcher.is_error():
            raise RuntimeError(self._first_matcher.get_error())
        self._threads = library.LLExecutor(num_threads=torch.get_num_threads())

    def _matcher(self) -> Any:
        return self._first_matcher.deep_copy()

    def _bitmask(self, rows: int) -> torch.Tensor:
        return torch.as_tensor(self._torch.allocate_token_bitmask(rows, self._width))

    def _accept(self, tokens: list[int]) -> list[bool]:
        return [matcher.consume_token(token) for matcher, token in zip(self._rows, tokens, strict=True)]

    def _fill(self) -> None:
        if len(self._rows) == 1:
            self._torch.fill_next_token_bitmask(self._rows[0], self._mask, 0)
        else:
            rows = [(matcher, row) for row, matcher in enumerate(self._rows)]
            self._torch.fill_next_token_bitmask_par(self._threads, rows, self._mask)

    def _apply(self, scores: torch.Tensor) -> None:
        self._torch.apply_token_bitmask_inplace(scores, self._mask)


class Outlines:
    """outlines' own processor of a regex, as shipped.

    Its index knows tokens by their decoded text, so a label with tokens that are parts of a character is refused or
    is never offered. `labels` are then those it can write, and `limit` says what happened with all of them.
    """

    def __init__(self, task: Task) -> None:
        core = import_module("outlines.backends.outlines_core")
        tokens = import_module("outlines.models.transformers").TransformerTokenizer(task.template.tokenizer)
        vocabulary = core.OutlinesCoreBackend.create_outlines_core_vocabulary(
            tokens.get_vocab(), tokens.eos_token_id, tokens.eos_token, tokens.convert_token_to_string
        )
        self.labels = whole_characters(task)
        self.limit = ""
        self.parts: dict[str, float] = {}
        index = import_module("outlines_core").Index
        try:
            built = index(task.regex, vocabulary)
        except ValueError as error:
            self.limit = f"the index of all labels is refused: {str(error).replace(task.regex, '<labels>')}"
            built = index(Task(task.template, self.labels, task.width, task.prompt).regex, vocabulary)
        else:
            if len(self.labels) < len(task.labels):
                self.limit = "labels with tokens that are parts of a character are never offered"
        self._process = core.OutlinesCoreLogitsProcessor(built, "torch")

    def begin(self, rows: int) -> None:
        """The processor makes its guides at its next call."""
        self._process.reset()

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores given, changed."""
        return torch.as_tensor(self._process(ids, scores))


def whole_characters(task: Task) -> tuple[str, ...]:
    """Labels whose tokens are whole characters and whose every character is also a token by itself.

    From any place in such a label some token goes on, so an index by decoded text can always be built.
    """
    texts = {value for token in task.template.token_bytes if (value := token.decode(errors="replace"))}
    decoded = [[task.template.token_bytes[token] for token in name] for name in task.names]
    return tuple(
        label
        for label, tokens in zip(task.labels, decoded, strict=True)
        if set(label) <= texts and all("\ufffd" not in token.decode(errors="replace") for token in tokens)
    )


PEERS: dict[str, Callable[[Task], Peer]] = {
    "transformers": PrefixFunction,
    "xgrammar": XGrammar,
    "xgrammar_compiled": XGrammarCompiled,
    "llguidance": LLGuidance,
    "outlines": Outlines,
}


def build(name: str, task: Task) -> Peer:
    """A peer that was seen to constrain. ImportError if its package is absent, RuntimeError if it does not do the task."""
    peer = PEERS[name](task)
    check(peer, Task(task.template, peer.labels, task.width, task.prompt))
    return peer


def check(peer: Peer, task: Task) -> None:
    """Raise RuntimeError unless the peer offers what a list of the task's labels needs, and little else."""
    name = max(task.names, key=len)
    follows = [{ids[0] for ids in task.names}, *({token} for token in name[1:]), {task.separator}]
    peer.begin(1)
    row = [0] * task.prompt
    for needed, token in zip(follows, [*name, task.separator], strict=True):
        offered = _offered(peer, row, task.width)
        if not needed <= offered or len(offered) > task.width // 2:
            raise RuntimeError(f"{type(peer).__name__} does not constrain: {len(offered)} ids, without {needed - offered}")
        row.append(token)


def _offered(peer: Peer, row: list[int], width: int) -> set[int]:
    scores = peer(torch.tensor([row]), torch.zeros(1, width))
    return set(torch.nonzero(scores[0] > -torch.inf)[:, 0].tolist())
