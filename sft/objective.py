"""What the loss weighs and what it penalises, token by token: the answer's parts, rare drugs, drugs in conflict.

The forward (`sft.forward`) asks for both on the whole batch's labels and returns weight * log p - penalty for each labelled
token, so that the trainer's own mean over tokens stays as it is. Knows ids, the trie and counts; no model, no logits, no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.processors import MASKED_TIER, answer_ids
from yaofang.decoding.trie import NO_DRUG
from yaofang.glm.template import ChatTemplate
from yaofang.sft.answer_parts import DrugNames, Ids, find_answers, lists_of
from yaofang.sft.examples import Example
from yaofang.sft.parts import Recipe
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

Floats = npt.NDArray[np.float64]
FLOOR, STEEPNESS = 0.1, 10.0
"""alpha and beta of the distribution-balanced weight."""
MU_OF_MEAN = 0.3
"""mu as a share of the mean of r."""
MEMO_SIZE = 1 << 14


class Weights(Protocol):
    """How much each labelled token counts."""

    def __call__(self, labels: Tensor, documents: Tensor) -> Tensor:
        """Weights [batch, length] of `labels`, which are not shifted; `documents` numbers the packed examples of a row."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """Ids that are penalised at places: the penalty of a place is strength * sum of severity * softmax(logits)[token].

    All three are [n] and on the labels' device; a place has as many entries as ids.
    """

    places: Tensor
    """Flat index into [batch, length] of the label, whose logits stand one position before."""
    tokens: Tensor
    severity: Tensor
    """In (0, 1], float32."""


class Penalty(Protocol):
    """What is penalised where."""

    def __call__(self, labels: Tensor, documents: Tensor) -> Sparse:
        """The penalised ids for `labels` [batch, length] and `documents` of the same shape."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The weights and the penalty of a run; None where a recipe turns none on."""

    weights: Weights | None = None
    penalty: Penalty | None = None
    strength: float = 0.0
    """Of the penalty, in the unit of -log p of one token."""


def objective_of(
    recipe: Recipe, template: ChatTemplate, vocabulary: Vocabulary, counts: Mapping[str, int], examples: Sequence[Example]
) -> Objective:
    """The recipe's objective. `counts` is each label's number of training records, `examples` what the run trains on.

    Raises InputError if the tokenizer splits a separator, or if drugs are to be balanced and no example has a drug list.
    """
    tail, plan = recipe.tail, recipe.training
    parts = plan.diagnosis_weight != 1 or plan.drug_weight != 1
    if not (parts or tail.balance or tail.conflict_penalty):
        return Objective()
    ids = answer_ids(template)
    names = DrugNames([template.encode(label) for label in vocabulary.labels], ids)
    factors: list[Weights] = [PartWeights(ids, plan.diagnosis_weight, plan.drug_weight)] if parts else []
    if tail.balance:
        ordered = np.array([counts.get(label, 0) for label in vocabulary.labels])
        factors.append(BalancedWeights(names, ordered, lists_of(examples, names), tail.balance))
    penalty = None
    if tail.conflict_penalty:
        penalty = ConflictPenalty(names, (load_conflicts(vocabulary).tiers == MASKED_TIER).astype(np.float64))
    weights = factors[0] if len(factors) == 1 else Product(factors) if factors else None
    return Objective(weights, penalty, tail.conflict_penalty)


@dataclass(frozen=True, slots=True)
class Product:
    """Several weights at once: they multiply."""

    factors: Sequence[Weights]

    def __call__(self, labels: Tensor, documents: Tensor) -> Tensor:
        """The product of the factors' weights, [batch, length]."""
        return reduce(mul, (weights(labels, documents) for weights in self.factors))


@dataclass(frozen=True, slots=True)
class PartWeights:
    """One weight for the diagnoses' tokens and one for the drugs'.

    The newline that ends the diagnoses is the first of the drugs' tokens, the stop id the last. 1 outside answers with a
    drug header (`answer_parts`): a conversation keeps its loss.
    """

    ids: AnswerIds
    diagnosis_weight: float
    drug_weight: float

    def __call__(self, labels: Tensor, documents: Tensor) -> Tensor:
        """Weights [batch, length], float32."""
        rows, numbers = _arrays(labels, documents)
        weights = np.ones(rows.size, dtype=np.float32)
        for parts in find_answers(rows, numbers, self.ids):
            weights[parts.start : parts.drugs] = self.diagnosis_weight
            weights[parts.drugs : parts.stop] = self.drug_weight
        return torch.from_numpy(weights.reshape(rows.shape)).to(labels.device)


class BalancedWeights:
    """Distribution-balanced weights on the tokens that decide for a drug.

    Source: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed Datasets, ECCV 2020
    (arXiv 2007.09654), there for sigmoid outputs. For the labels of one record, with n_i their number of training records,

        r_i = (1/n_i) / sum_j (1/n_j)        v_i = 0.1 + sigmoid(10 (r_i - mu))

    so of the drugs in a list the rarest counts most. (Weighing whole records would weigh the frequent drugs beside it too.)

    **mu.** The r of a record sum to 1, so their mean over all listed drugs is exactly 1 / (mean length of a list). The usual
    mu = 0.05 at 6 drugs a list is 0.3 of that mean, and 0.3 of it is taken at any length: one number for a training set.

    **Which tokens.** A name is several ids, most of them forced by the trie. v_i goes to those of drug i at nodes with more
    than one continuation (what closes a name too, where another goes on). Forced tokens, separators and the end keep weight 1.

    **Level.** v is divided by its mean over these tokens in the run's examples, so that their mean weight is 1 and a learning
    rate means what it meant; then weight = 1 + balance (v / mean - 1). Since v lies between 0.1 and 1.1 no weight reaches 11,
    and at mu = 0.05, where v begins at 0.47, none reaches 2.4: there is nothing to cap.

    **No bias.** The paper also shifts each label's logit by b_i = (kappa / lambda) logit(n_i / N): a sigmoid for each label
    gets a negative from nearly every record, and the shift makes up for them. A softmax over the continuations has one loss a
    place and no such negatives; nor has a drug a logit of its own. What a softmax keeps of the long tail is the prior within
    p(drug), and that is taken out while decoding (`decoding.bias`: log p - tau log prior), where tau is chosen after training.
    """

    def __init__(self, names: DrugNames, counts: Ids, lists: Sequence[Sequence[int]], balance: float) -> None:
        """`counts` [D] in the vocabulary's order, `lists` the run's lists by the trie's numbers (`lists_of`).

        A label that `counts` does not know counts as seen once. Raises InputError if no list names a drug.
        """
        sizes = [len(numbers) for numbers in lists if len(numbers)]
        if not sizes:
            raise InputError("tail.balance: no training example has a list of drugs", way_out="Set tail.balance=0.")
        self._names = names
        self._inverse = 1 / np.maximum(counts[names.trie.order], 1)
        self.mu = MU_OF_MEAN * len(sizes) / sum(sizes)
        self._mean, self._balance = 1.0, 1.0
        numbers = np.concatenate([np.array(found, dtype=np.int64) for found in lists if len(found)])
        values = np.concatenate([self.of_list(found) for found in lists if len(found)])
        tokens = np.array([len(names.deciding[number]) for number in numbers])
        self._mean, self._balance = float(tokens @ values / max(tokens.sum(), 1)) or 1.0, balance

    def of_list(self, numbers: Sequence[int]) -> Floats:
        """The weight of the deciding tokens of each drug of one list, given by the trie's numbers."""
        inverse = self._inverse[np.asarray(numbers, dtype=np.int64)]
        share = inverse / inverse.sum()
        value = FLOOR + 1 / (1 + np.exp(-STEEPNESS * (share - self.mu)))
        weight: Floats = 1 + self._balance * (value / self._mean - 1)
        return weight

    def __call__(self, labels: Tensor, documents: Tensor) -> Tensor:
        """Weights [batch, length], float32."""
        rows, packed = _arrays(labels, documents)
        flat, weights = rows.reshape(-1), np.ones(rows.size, dtype=np.float32)
        for parts in find_answers(rows, packed, self._names.ids):
            listed = self._names.listed(flat, parts)
            for (number, name), weight in zip(listed, self.of_list([number for number, _ in listed]), strict=True):
                weights[name.start + self._names.deciding[number]] = weight
        return torch.from_numpy(weights.reshape(rows.shape)).to(labels.device)


class ConflictPenalty:
    """The probability of drugs in conflict with those already listed, as a penalty on the tokens that lead to them.

    The specification's ddi_loss is y A y with y the labels' probabilities and A[i, j] in [0, 1] the severity of a pair. At the
    place of the next drug of a list those already listed, L, are certain, so the part of y A y that the next token can
    still change is

        sum_j A[j, L] p(j),    A[j, L] = max over i in L of A[j, i],

    the expected severity of the next drug (the maximum, so that a drug in conflict with two of the list counts once and the
    sum stays a probability; the drugs of L are those of the training list: teacher forcing, as in the loss itself).

    **On a trie** p(j) is a product of token probabilities, of which one forward knows those along the list as written. With

        s(n) = min of A[j, L] over the drugs j below node n that are not listed

    the penalty at node n is the sum over its continuations c of (s(c) - s(n)) p(c). s(c) is the severity that cannot be
    avoided any more once c is written: a token that still leads to a harmless drug costs nothing, whatever else it leads
    to, since the choice is penalised where it is made. s(n) was paid for earlier, so ids that have become forced cost
    nothing; along a name the payments add up to A[j, L] - s(root), as the leanings of `decoding.bias` do. Where every name
    is one id, all nodes below the root are leaves, s(c) = A[j, L] and, while one drug is free of conflicts, s(root) = 0: the
    penalty is sum_j A[j, L] p(j) itself. (An expected severity below c would push down what harmless drugs share, too.)

    A list that itself holds a pair in conflict is penalised too: that is where the other term of the loss teaches it.
    """

    def __init__(self, names: DrugNames, severity: Floats) -> None:
        """`severity` [D, D] in [0, 1] in the vocabulary's order; it is made symmetric, its diagonal means nothing."""
        size, order = len(names.trie), names.trie.order
        if severity.shape != (size, size) or (size and not 0 <= severity.min() <= severity.max() <= 1):
            raise ValueError(f"severity must be [{size}, {size}] between 0 and 1")
        self._names = names
        self._against: Floats = np.maximum(severity, severity.T)[np.ix_(order, order)]
        np.fill_diagonal(self._against, 0)
        self._conflicted: npt.NDArray[np.bool_] = self._against.max(axis=1, initial=0) > 0
        self._choices: dict[int, tuple[Ids, Ids, Ids]] = {}
        self._memo: dict[tuple[int, frozenset[int]], tuple[Ids, Floats]] = {}

    def __call__(self, labels: Tensor, documents: Tensor) -> Sparse:
        """The ids in conflict at each place of each list, on the labels' device."""
        rows, packed = _arrays(labels, documents)
        flat = rows.reshape(-1)
        places, tokens, severity = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
        for parts in find_answers(rows, packed, self._names.ids):
            before: frozenset[int] = frozenset()
            for number, name in self._names.listed(flat, parts):
                for offset in self._names.deciding[number].tolist() if self._conflicted[list(before)].any() else ():
                    found, paid = self.at(self._names.paths[number][offset], before)
                    places.append(np.full(len(found), name.start + offset))
                    tokens.append(found)
                    severity.append(paid)
                before |= {number}
        return Sparse(
            torch.from_numpy(np.concatenate(places)).to(labels.device),
            torch.from_numpy(np.concatenate(tokens)).to(labels.device),
            torch.from_numpy(np.concatenate(severity).astype(np.float32)).to(labels.device),
        )

    def at(self, node: int, listed: frozenset[int]) -> tuple[Ids, Floats]:
        """The penalised ids at a node and their severity s(c) - s(node) > 0, after the drugs `listed` (trie's numbers)."""
        found = self._memo.get((node, listed))
        if found is None:
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            found = self._memo[node, listed] = self._at(node, listed)
        return found

    def _at(self, node: int, listed: frozenset[int]) -> tuple[Ids, Floats]:
        (low, high), (ids, group, starts) = self._names.trie.span(node), self._continuations(node)
        rows = list(listed)
        against = self._against[rows, low:high].max(axis=0, initial=0)
        against[[number - low for number in rows if low <= number < high]] = np.inf  # a listed drug is not listed again
        least = np.minimum.reduceat(against, starts)
        unavoidable = least.min()
        if not np.isfinite(unavoidable):
            return ids[:0], np.empty(0)
        extra = np.where(np.isfinite(least), least - unavoidable, 0)[group]
        return ids[extra > 0], extra[extra > 0]

    def _continuations(self, node: int) -> tuple[Ids, Ids, Ids]:
        """The ids that may follow a node, for each the number of its group of drugs, and where each group begins.

        The groups adjoin: first the name that ends here, to which separator and end lead alike, then the children by id.
        """
        known = self._choices.get(node)
        if known is None:
            trie, ids = self._names.trie, self._names.ids
            low = trie.span(node)[0]
            ending = [[ids.drug_separator, ids.end]] if trie.ending[node] != NO_DRUG else []
            children = sorted(trie.children[node].items())
            groups = [*ending, *([token] for token, _ in children)]
            starts = [0] * len(ending) + [trie.span(child)[0] - low for _, child in children]
            sizes = [len(group) for group in groups]
            known = np.concatenate(groups), np.repeat(np.arange(len(groups)), sizes), np.array(starts, dtype=np.int64)
            self._choices[node] = known
        return known


def _arrays(labels: Tensor, documents: Tensor) -> tuple[Ids, Ids]:
    return labels.detach().cpu().numpy(), documents.detach().cpu().numpy()
