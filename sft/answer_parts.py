"""Where an answer's parts and drugs stand in rows of labels, packed or not: ids and numbers only, no text and no tensor.

An answer is a run of labelled ids of one document that begins with the opening and holds the drugs' header
(`data.answer`). Any other run, such as a turn of a conversation, has no parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.trie import NO_DRUG, ROOT, Trie
from yaofang.sft.examples import Example

Ids = npt.NDArray[np.int64]
IGNORED = -100
"""The label of a position that is not trained."""


@dataclass(frozen=True, slots=True)
class Parts:
    """An answer's places among the labels read as one flat row: diagnoses [start, drugs), drugs [drugs, stop)."""

    start: int
    drugs: int
    """The newline that ends the diagnoses."""
    first: int
    """The first id of the list, after the header."""
    stop: int


@dataclass(frozen=True, slots=True)
class Name:
    """A name of a list: its ids stand at [start, close), the separator or end after it at `close`."""

    start: int
    close: int


def find_answers(labels: Ids, documents: Ids, ids: AnswerIds) -> list[Parts]:
    """The answers in `labels` [batch, length], -100 where nothing is trained.

    `documents` of the same shape tells the packed examples of a row apart. Places count through the flattened labels.
    """
    flat = labels.reshape(-1)
    found = (_parts(flat, start, stop, ids) for start, stop in _runs(labels, documents))
    return [parts for parts in found if parts is not None]


def find_names(flat: Ids, parts: Parts, ids: AnswerIds) -> list[Name]:
    """The names of an answer's list, in their order."""
    closes = parts.first + np.flatnonzero(np.isin(flat[parts.first : parts.stop], [ids.drug_separator, *ids.ends]))
    starts = [parts.first, *(closes[:-1] + 1).tolist()]
    return [Name(start, close) for start, close in zip(starts, closes.tolist(), strict=False) if start < close]


def _runs(labels: Ids, documents: Ids) -> list[tuple[int, int]]:
    """[start, stop) of each unbroken run of labelled positions of one document of one row."""
    rows, width = labels.shape
    trained = (labels != IGNORED).reshape(-1)
    before = np.roll(trained, 1)
    other = (documents != np.roll(documents, 1, axis=1)).reshape(-1)
    edge = np.arange(rows * width) % width == 0 if width else np.zeros(0, dtype=bool)
    begins = np.flatnonzero(trained & (~before | other | edge))
    after = np.append(begins[1:], rows * width)
    lengths = (int(np.argmin(np.append(trained[a:b], False))) for a, b in zip(begins, after, strict=True))
    return [(start, start + length) for start, length in zip(begins.tolist(), lengths, strict=True)]


def _parts(flat: Ids, start: int, stop: int, ids: AnswerIds) -> Parts | None:
    inside = start + len(ids.opening)
    if tuple(flat[start:inside].tolist()) != ids.opening:
        return None
    newlines = np.flatnonzero(flat[inside:stop] == ids.newline)
    if not len(newlines):
        return None
    drugs = inside + int(newlines[0])
    first = drugs + 1 + len(ids.header)
    return Parts(start, drugs, first, stop) if tuple(flat[drugs + 1 : first].tolist()) == ids.header else None


class DrugNames:
    """The vocabulary's names as a trie, and what each says of the places where it stands.

    `names` are the labels' ids, each encoded alone, in the vocabulary's order. Drugs are numbered as in `Trie`.
    """

    def __init__(self, names: Iterable[Sequence[int]], ids: AnswerIds) -> None:
        self.ids = ids
        self.trie = Trie(names)
        self._number = {name: number for number, name in enumerate(self.trie.names)}

    def branches(self, node: int) -> bool:
        """Whether the trie leaves a choice at a node: more than one child, or a child and a name's end."""
        return len(self.trie.children[node]) + (self.trie.ending[node] != NO_DRUG) > 1

    @cached_property
    def paths(self) -> list[list[int]]:
        """For each drug the nodes at which the ids of its name, and what closes it, are chosen: name's length + 1."""
        found = []
        for name in self.trie.names:
            path = [ROOT]
            for token in name:
                path.append(self.trie.children[path[-1]][token])
            found.append(path)
        return found

    @cached_property
    def deciding(self) -> list[Ids]:
        """For each drug the offsets into its path at which the trie branches; the others' ids are forced."""
        return [np.flatnonzero([self.branches(node) for node in path]) for path in self.paths]

    def listed(self, flat: Ids, parts: Parts) -> list[tuple[int, Name]]:
        """The drugs of an answer's list by the trie's numbers, with their places; names of no label are left out."""
        names = find_names(flat, parts, self.ids)
        numbers = (self._number.get(tuple(flat[name.start : name.close].tolist())) for name in names)
        return [(number, name) for number, name in zip(numbers, names, strict=True) if number is not None]


def lists_of(examples: Iterable[Example], names: DrugNames) -> list[list[int]]:
    """The drug list of each answer among the examples, by the trie's numbers."""
    found = []
    for example in examples:
        labels = labels_of(example)
        for parts in find_answers(labels, np.zeros_like(labels), names.ids):
            found.append([number for number, _ in names.listed(labels[0], parts)])
    return found


def labels_of(example: Example) -> Ids:
    """The labels of one example, [1, length]: its ids, -100 where they are not trained."""
    mask = np.asarray(example.completion_mask, dtype=bool)
    labels: Ids = np.where(mask, np.asarray(example.input_ids, dtype=np.int64), IGNORED)[None]
    return labels
