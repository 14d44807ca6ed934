"""The examples of a whole run, in order: rare drugs' records seen more often, drugs in another order, sources by weight.

    plan = plan_examples(recipe, examples, answer_ids(template), weights)

All epochs are laid out one after the other, each shuffled for itself, and the trainer runs once over the list: no sampler of
our own has to agree with a resumed run or another process. Where nothing asks for it the examples stay as they are. Knows
ids; no text, no model.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import numpy.typing as npt

from yaofang.decoding.answer_ids import AnswerIds
from yaofang.sft import ranks
from yaofang.sft.answer_parts import Name, find_answers, find_names, labels_of
from yaofang.sft.examples import Example
from yaofang.sft.parts import Recipe
from yaofang.vocab.errors import InputError

log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
GRAIN = 1 << 20
"""Steps of a chance below 1: coarse enough that a sum with whole numbers never rounds up to the next one."""
MARGIN = 1.05
"""Epochs that are laid out over those that the steps are expected to need."""
MEGABATCH = 50
"""Batches within which examples are ordered by length, as transformers' LengthGroupedSampler has it."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """What the trainer gets."""

    examples: list[Example]
    epochs: float
    """Epochs that the trainer runs over `examples`: 1 where all epochs are laid out."""
    shuffle: bool
    """Whether the trainer draws its own order; False: as they stand. Packed rows are always drawn, epochs mixed, since packing
    puts examples in an order of its own."""
    sizes: tuple[int, ...] = ()
    """Examples of each epoch that is laid out."""


def plan_examples(
    recipe: Recipe, examples: Sequence[Example], ids: AnswerIds, weights: Sequence[float] | None = None
) -> PlannedRun:
    """The run's examples, from one example a row; the same list for the same recipe and rows, on every process.

    `weights` says how often each row is seen an epoch (None: once). A record is seen weight * `repeat_factors` times, its
    fraction rounded as in `times_seen`. Raises InputError if the weights leave nothing.
    """
    tail, training = recipe.tail, recipe.training
    expected = np.ones(len(examples)) if weights is None else np.array(weights, dtype=np.float64)
    shuffled = recipe.data.drug_order == "shuffled"
    # transformers' sampler of like lengths draws from a generator that dropout may have driven apart in the processes.
    by_processes = training.group_by_length and ranks.world() > 1
    if not (tail.repeat_below or shuffled or by_processes or (expected != 1).any()):
        return PlannedRun(list(examples), training.epochs, shuffle=True)
    names = [_names(example, ids) for example in examples]
    if tail.repeat_below:
        lists = [_keys(example, found) for example, found in zip(examples, names, strict=True)]
        expected = expected * repeat_factors(lists, expected, tail.repeat_below, tail.repeat_at_most)
    laid: list[Example] = []
    sizes: list[int] = []
    for rows in _epochs(recipe, expected, [len(example.input_ids) for example in examples]):
        chance = np.random.default_rng((training.seed, 2, len(sizes)))
        laid += [_shuffled(examples[row], names[row], ids, chance) if shuffled else examples[row] for row in rows.tolist()]
        sizes.append(len(rows))
    if not laid:
        raise InputError("the weights leave no row to train on", field="data.mix", way_out="Make a weight larger.")
    log.info("%d rows are seen %d times: %.2f times an epoch", len(examples), len(laid), expected.mean())
    return PlannedRun(laid, 1, shuffle=recipe.data.packing, sizes=tuple(sizes))


def repeat_factors(lists: Sequence[Collection[Hashable]], weights: Floats, below: float, at_most: float) -> Floats:
    """How often each record is to be seen for its rarest drug: max over its drugs of sqrt(below / f), 1 to `at_most`.

    f is the share of the records that have the drug, each counted by its weight, among those that have any. The maximum and
    not a product or sum: a record with three rare drugs is seen as often as one with the rarest of them. Repeat-factor
    sampling of Gupta, Dollar and Girshick, LVIS, CVPR 2019 (arXiv 1908.03195), with a cap.
    """
    count: Counter[Hashable] = Counter()
    total = 0.0
    for listed, weight in zip(lists, weights.tolist(), strict=True):
        total += weight if listed else 0
        for drug in set(listed):
            count[drug] += weight
    rarest = np.array([min((count[drug] for drug in listed), default=np.inf) for listed in lists])
    return np.asarray(np.clip(np.sqrt(below * total / rarest), 1, at_most), dtype=np.float64)


def times_seen(expected: Floats, epochs: int, seed: int) -> Ints:
    """How often each row is seen in each epoch, [epochs, rows]: each time `expected` [rows] rounded down or up.

    Each row has a chance u in [0, 1), and after e epochs was seen floor(e * expected + u) times: in the mean exactly what a new
    chance for each rounding gives (LVIS), but over all epochs a row is less than one off, and one of weight 0.5 is seen every
    second epoch. The chances are spread evenly (systematic sampling), so that epochs are of like size.
    """
    draw, rows = np.random.default_rng((seed, 0)), len(expected)
    chance = (draw.permutation(rows) + draw.integers(GRAIN) / GRAIN) / max(rows, 1)
    seen = np.floor(np.arange(epochs + 1)[:, None] * expected + chance)
    return np.clip(np.diff(seen, axis=0), np.floor(expected), np.ceil(expected)).astype(np.int64)


def _epochs(recipe: Recipe, expected: Floats, lengths: Sequence[int]) -> list[Ints]:
    """The rows of each epoch in their order; of a last epoch that is not whole, so much as there is of it."""
    training, found = recipe.training, []
    epochs = _length(recipe, float(expected.sum()))
    for epoch, times in enumerate(times_seen(expected, ceil(epochs), training.seed)):
        chance = np.random.default_rng((training.seed, 1, epoch))
        rows = chance.permutation(np.repeat(np.arange(len(times)), times))
        if training.group_by_length and not recipe.data.packing:
            rows = by_length(rows, np.array(lengths)[rows], training.batch_size, chance)
        found.append(rows[: round(min(1.0, epochs - epoch) * len(rows))])
    return found


def _length(recipe: Recipe, rows: float) -> float:
    """Epochs of the run, of so many rows: the recipe's, or some more than its `max_steps` need where these need more.

    Some, as an epoch may have fewer rows than expected. Packed rows hold several examples each, nobody knows how many: the
    trainer begins at the front again where it needs more.
    """
    training = recipe.training
    if training.max_steps < 1 or recipe.data.packing:
        return training.epochs
    together = ranks.world() // training.sequence_parallel_size * training.batch_size * training.accumulation
    needed = training.max_steps * together / max(rows, 1.0)
    return training.epochs if needed <= training.epochs else MARGIN * needed


def by_length(rows: Ints, lengths: Ints, batch: int, chance: np.random.Generator) -> Ints:
    """The rows in batches of like length: within so many batches by length, and these batches in a new order.

    `lengths` are those of `rows`; the last batch of all may be short and stays last.
    """
    found = []
    for start in range(0, len(rows), MEGABATCH * batch):
        part = rows[start : start + MEGABATCH * batch]
        part = part[np.argsort(-lengths[start : start + MEGABATCH * batch], kind="stable")]
        whole = len(part) // batch * batch
        found += [*chance.permutation(part[:whole].reshape(-1, batch)), part[whole:]]
    return np.concatenate([rows[:0], *found])


def _names(example: Example, ids: AnswerIds) -> list[list[Name]]:
    """The names of the example's drug lists: one, or none in a conversation."""
    labels = labels_of(example)
    return [find_names(labels[0], parts, ids) for parts in find_answers(labels, np.zeros_like(labels), ids)]


def _keys(example: Example, lists: Sequence[Sequence[Name]]) -> list[tuple[int, ...]]:
    """The drugs of an example: a label is its ids, each encoded alone."""
    return [tuple(example.input_ids[name.start : name.close]) for names in lists for name in names]


def _shuffled(example: Example, lists: Sequence[Sequence[Name]], ids: AnswerIds, chance: np.random.Generator) -> Example:
    """The example with the drugs of its lists in another order; everything else stays where it is."""
    written = list(example.input_ids)
    for names in lists:
        order = [example.input_ids[names[place].start : names[place].close] for place in chance.permutation(len(names))]
        joined = [token for name in order for token in (*name, ids.drug_separator)][:-1]
        if names and len(joined) == names[-1].close - names[0].start:  # else there are stray separators: leave them
            written[names[0].start : names[-1].close] = joined
    return replace(example, input_ids=written)
