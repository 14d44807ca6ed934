"""A GLM-4 model's answers to CMB-Exam, by constrained decoding over the options of each question.

A single choice is the most probable of the question's own letters after the prompt, in one forward. Of a multiple choice every
non-empty set of letters, written in ascending order and ended by the stop id, is scored exactly: the sets are the nodes of a
tree that one more forward reads on top of the prompt's cache, 31 nodes for five options, 63 for six. A state machine over
letters would take the best letter at each step, which need not lead to the best set, and more forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from yaofang.decoding.running import Run
from yaofang.eval.cmb.exam import Question
from yaofang.glm.loading import LoadedModel
from yaofang.vocab.errors import InputError

START = "\n"
"""What GLM-4 writes first after its marker."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model chose."""

    id: str
    letters: frozenset[str]
    probability: float
    """Of this answer among all answers that the question allows."""
    shots: int
    """Examples that the prompt had room for."""


def user_turn(question: Question) -> str:
    """The benchmark's own prompt for an answer without analysis (arXiv 2308.08833, appendix; README of the data set)."""
    options = "".join(f"\n{letter}. {text}" for letter, text in question.options)
    kind = f"以下是中国{question.exam_type}中{question.exam_class}考试的一道{question.kind}"
    return f"{kind}，不需要做任何分析和解释，直接输出答案选项。\n{question.text}{options}"


def examples_for(question: Question, examples: Sequence[Question], shots: int) -> list[Question]:
    """The first `shots` examples nearest to a question: of its class and type, its type, then any; never the question itself.

    The question itself is told by its text, blanks apart: ids of two files may mean different questions.
    """

    def distance(example: Question) -> tuple[bool, bool]:
        same_class = (example.exam_type, example.exam_class) == (question.exam_type, question.exam_class)
        return example.multiple != question.multiple, not same_class

    others = [e for e in examples if _bare(e) != _bare(question) and e.answer is not None]
    return sorted(others, key=distance)[:shots]


def _bare(question: Question) -> str:
    return "".join(question.text.split())


class Examinee:
    """Asks one model. Raises InputError if a letter is not one token of its own, or a question does not fit the model."""

    def __init__(self, loaded: LoadedModel, examples: Sequence[Question] = (), shots: int = 0) -> None:
        self._loaded = loaded
        self._examples = examples
        self._shots = shots

    def answers(
        self, questions: Sequence[Question], batch_size: int = 8, advance: Callable[[int], None] = lambda n: None
    ) -> Iterator[Choice]:
        """A Choice for each question; in a batch are questions of one type with the same letters and prompts of like length."""
        prompts = {question.id: self.prompt(question) for question in questions}
        groups: dict[tuple[bool, str], list[Question]] = {}
        for question in questions:
            groups.setdefault((question.multiple, question.letters), []).append(question)
        for (multiple, letters), members in groups.items():
            members.sort(key=lambda question: len(prompts[question.id][0]))
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                found = self._choose([prompts[q.id][0] for q in batch], letters, multiple)
                for question, (chosen, probability) in zip(batch, found, strict=True):
                    yield Choice(question.id, chosen, probability, prompts[question.id][1])
                advance(len(batch))

    def prompt(self, question: Question) -> tuple[list[int], int]:
        """The ids up to the first letter, and how many examples they hold: as many of those asked for as fit the context."""
        room = self._loaded.context - len(question.letters) - 1
        chosen = examples_for(question, self._examples, self._shots)
        for shots in range(len(chosen), -1, -1):
            ids = self._ids(question, chosen[:shots])
            if len(ids) <= room:
                return ids, shots
        problem = f"question {question.id} has {len(ids)} tokens, the model takes {room}"
        raise InputError(problem, field="question", way_out="Use a model with a longer context.")

    def _ids(self, question: Question, examples: Sequence[Question]) -> list[int]:
        """Every turn by the template; letters are encoded one by one, as they are decoded."""
        template = self._loaded.template
        ids: list[int] = list(template.prefix)
        for one in (*examples, question):
            ids += template.prompt_ids([{"role": "user", "content": user_turn(one)}])[len(template.prefix) :]
            pieces = [START, *sorted(one.answer or ())] if one is not question else [START]
            ids += template.completion_ids(pieces)[:-1]  # the stop id is the next turn's own marker
        return ids

    def _choose(self, prompts: Sequence[Sequence[int]], letters: str, multiple: bool) -> list[tuple[frozenset[str], float]]:
        """The most probable answer of each prompt, and its share of the probability of all answers allowed."""
        run = Run(self._loaded, prompts)
        first = run.logits.log_softmax(-1)
        ids = [self._id(letter) for letter in letters]
        if not multiple:
            answers = [frozenset(letter) for letter in letters]
            scores = first[:, ids]
        else:
            tree = LetterTree(letters)
            answers = [frozenset(node) for node in tree.nodes]
            scores = torch.stack([self._sets(run, row, first[row], tree) for row in range(len(prompts))])
        best = scores.argmax(-1).tolist()
        shares = scores.softmax(-1).max(-1).values.tolist()
        return [(answers[place], share) for place, share in zip(best, shares, strict=True)]

    def _sets(self, run: Run, row: int, first: torch.Tensor, tree: LetterTree) -> torch.Tensor:
        """Log probability [nodes] that the model writes a node's letters and then stops."""
        tokens = torch.tensor([self._id(node[-1]) for node in tree.nodes])
        logits = run.tree([row], [run.columns], tokens, tree.depths, tree.ancestors)[0].log_softmax(-1)
        written: list[torch.Tensor] = []
        for place, node in enumerate(tree.nodes):
            parent = tree.parents[place]
            before = first if parent is None else logits[parent]
            written.append(before[self._id(node[-1])] + (0.0 if parent is None else written[parent]))
        return torch.stack(written) + logits[:, self._loaded.template.stop_id]

    def _id(self, letter: str) -> int:
        ids = self._loaded.template.encode(letter)
        if len(ids) != 1:
            raise InputError(f"the tokenizer has no token {letter}", way_out="Use the tokenizer of a GLM-4 model.")
        return ids[0]


class LetterTree:
    """All non-empty sets of letters as nodes of a tree: a set in ascending order, whose parent lacks the last letter."""

    def __init__(self, letters: str) -> None:
        self.nodes = ["".join(s) for size in range(1, len(letters) + 1) for s in combinations(sorted(letters), size)]
        places = {node: place for place, node in enumerate(self.nodes)}
        self.parents = [places.get(node[:-1]) for node in self.nodes]
        self.depths = torch.tensor([len(node) - 1 for node in self.nodes])
        self.ancestors = torch.tensor([[node.startswith(other) for other in self.nodes] for node in self.nodes])
