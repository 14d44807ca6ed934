"""How the exact probability of each listed drug changes when a piece of evidence is taken out of the record, or put in.

    found = counterfactual(recommender, record, recommender(record))
    found.effect          # [drugs, pieces] nats; positive: the piece speaks for the drug
    found.top(0)          # the piece that the first drug leans on most

**The quantity.** effect[d, e] = logit p(d | record) - logit p(d | record without e), with logit p = log p - log(1 - p). p is
the drug's `p_step` (`decoding.reasons`): the probability of this label at its place in the list, given the same diagnoses
before the list, the same drugs before it, and that the list goes on; exact, under the same constraint. Two contexts are
computed in the same forwards: `effect`, the drug at its place, and `head_effect`, the drug as the first of an empty list.
The first is the one to show: it finds the true cause far more often on the simulated ward (`inspection.faithfulness` reports
both). Lists are written in the order of frequency, so a rare drug is first only if all frequent ones are left out, and its
probability at the head answers to the evidence of those.

It is an intervention on the model's input, one piece at a time: representation erasure (Li, Monroe and Jurafsky, arXiv
1612.08220), as occlusion is for images (Zeiler and Fergus, ECCV 2014). Evidence that stands twice loses little when one of
both is taken out: a small effect does not say that a piece is unused. The diagnoses are held, also those that the model has
written itself.

**The work.** The record's prompt is read once. A variant shares its beginning with it, up to the first token that differs: that
part comes from the cache, and only what follows is read, for `batch_size` variants at once. The drugs at their places are read
along the list, those at its head by a tree of their names on the same cache. Knows records, labels and ids.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from yaofang.data.answer import clean_diagnosis, diagnosis_pieces
from yaofang.data.recommendation import Recommendation
from yaofang.data.records import Record
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.gathering import gathered
from yaofang.decoding.preparation import Task
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.running import Run
from yaofang.decoding.scoring import choice_tree
from yaofang.decoding.trie import ROOT
from yaofang.glm.loading import LoadedModel
from yaofang.inspection.evidence import DIAGNOSES, Piece, Shown, finest, pieces
from yaofang.vocab.errors import InputError

Nats = npt.NDArray[np.float64]
Said = Callable[[int, int], torch.Tensor]
"""(tokens of the name so far, node of the trie) -> logits [models, rows, V] there."""
CERTAIN = -1e-9
"""Highest log probability that log-odds are taken of: 20.7 nats. Float32 logits say nothing beyond."""


@dataclass(frozen=True)
class Counterfactual:
    """Effects in nats of log-odds, [drugs, pieces]; positive where the piece speaks for the drug."""

    pieces: tuple[Piece, ...]
    drugs: tuple[str, ...]
    effect: Nats
    """On the drug at its place in the list."""
    base: Nats
    """[drugs] probability at its place, with the whole prompt: `p_step`."""
    head_effect: Nats
    """On the drug as the first of an empty list."""
    head_base: Nats
    seen: npt.NDArray[np.bool_]
    """[pieces] false where fitting has cut the piece out of the prompt: its effect is 0, and says nothing of the record."""

    @property
    def ranked(self) -> list[int]:
        """Places of the pieces that can be compared with one another: those in the prompt that hold no other, no added one."""
        return [at for at in finest(self.pieces) if self.seen[at] and not self.pieces[at].added]

    def top(self, drug: int) -> Piece | None:
        """The piece with the greatest effect on a drug; None if none speaks for it."""
        ranked = self.ranked
        best = max(ranked, key=lambda at: self.effect[drug, at], default=None)
        return None if best is None or self.effect[drug, best] <= 0 else self.pieces[best]


@dataclass(frozen=True)
class Case:
    """A record and its list, ready to be asked: what every variant has in common."""

    task: Task
    shown: Shown
    diagnoses: tuple[str, ...]
    drugs: tuple[int, ...]
    """Positions in the vocabulary."""
    start: State
    """Where the list begins."""


def prepare(recommender: Recommender, record: Record, drugs: Recommendation | Sequence[str]) -> Case:
    """The case of a record and a list; repeats are left out.

    The diagnoses are those of the Recommendation, or the record's own. Raises InputError for an empty list and for a label
    that is not in the vocabulary or that the settings ban in this record.
    """
    labels = list(dict.fromkeys(drugs.labels if isinstance(drugs, Recommendation) else drugs))
    named = [one.name for one in drugs.diagnoses] if isinstance(drugs, Recommendation) else list(record.diagnoses)
    task = recommender.prepare(record)
    start = task.start._replace(phase=Phase.LIST, position=0, open=False, node=ROOT)
    for label in labels:
        if label not in recommender.vocabulary:
            way_out = "Use labels of the vocabulary; `yaofang vocab match` finds the label of a name."
            raise InputError(f"{label} is not in the vocabulary", field="drugs", way_out=way_out)
    positions = tuple(recommender.vocabulary.index(label) for label in labels)
    allowed = set(recommender.constraint.positions(start.allowed))
    if not positions or not allowed.issuperset(positions):
        raise InputError(
            f"record {record.id}: an empty list, or a drug that the settings ban",
            field="drugs",
            way_out="Give at least one label, and settings that allow it.",
        )
    diagnoses = tuple(name for name in named if clean_diagnosis(name))
    return Case(task, Shown.of(record, task.prompt), diagnoses, positions, start)


def counterfactual(
    recommender: Recommender,
    record: Record,
    drugs: Recommendation | Sequence[str],
    *,
    evidence: Sequence[Piece] | None = None,
    batch_size: int = 16,
) -> Counterfactual:
    """The effect of each piece on each drug of a list.

    `evidence` None is all pieces of the record; those made by `added_diagnosis` are put in instead of taken out. Raises
    InputError as `prepare` does.
    """
    case = prepare(recommender, record, drugs)
    asked = list(pieces(record, case.diagnoses) if evidence is None else evidence)
    seen = np.array([piece.section == DIAGNOSES or case.shown.touches(piece) for piece in asked], dtype=np.bool_)
    prompts = [prompt_of(recommender, case)]
    prompts += [prompt_of(recommender, case, piece) for piece, shown in zip(asked, seen, strict=True) if shown]
    distinct = list(dict.fromkeys(tuple(ids) for ids in prompts))
    scores = _scores(recommender, case, distinct, batch_size)
    number = {ids: at for at, ids in enumerate(distinct)}
    odds = _log_odds(scores)
    effects = np.zeros((2, len(case.drugs), len(asked)))
    places = np.flatnonzero(seen)
    for at, ids in zip(places, prompts[1:], strict=True):
        less = odds[:, number[tuple(prompts[0])]] - odds[:, number[tuple(ids)]]
        effects[:, :, at] = -less if asked[at].added else less
    base = np.exp(scores[:, 0])
    labels = tuple(recommender.vocabulary.labels[position] for position in case.drugs)
    return Counterfactual(tuple(asked), labels, effects[0], base[0], effects[1], base[1], seen)


def prompt_of(recommender: Recommender, case: Case, piece: Piece | None = None) -> list[int]:
    """Ids before the list: the fitted prompt and the diagnoses, with a piece taken out or put in."""
    names, content = list(case.diagnoses), case.shown.content
    if piece is not None and piece.added:
        names.insert(piece.start, piece.text)
    elif piece is not None and piece.section == DIAGNOSES:
        del names[piece.start : piece.end]
    elif piece is not None:
        content = case.shown.without(piece)
    messages = (*case.task.prompt.messages[:-1], {**case.task.prompt.messages[-1], "content": content})
    template = recommender.template
    return [*template.prompt_ids(messages), *(i for part in diagnosis_pieces(names) for i in template.encode(part))]


def _log_odds(log_p: Nats) -> Nats:
    capped = np.minimum(log_p, CERTAIN)
    found: Nats = capped - np.log(-np.expm1(capped))
    return found


def _scores(recommender: Recommender, case: Case, prompts: Sequence[tuple[int, ...]], batch_size: int) -> Nats:
    """Log probabilities [2, prompts, drugs]: at their places and at the head. The first prompt is the one that others share."""
    asked = _Asked(recommender, case)
    found = np.zeros((2, len(prompts), len(case.drugs)))
    bases = [Run(loaded, prompts[:1]) for loaded in recommender.models]
    # Those that share the most with the base go together: what a batch reads is as long as its longest rest.
    order = sorted(range(len(prompts)), key=lambda at: _shared(prompts[0], prompts[at]))
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        runs = [branch(base, prompts[0], [prompts[at] for at in batch], asked.ids) for base in bases]
        found[:, batch] = asked(runs)
    return found


def _shared(base: Sequence[int], variant: Sequence[int]) -> int:
    """Tokens at the beginning that two prompts have in common, the last one of the variant left out: it has to be read."""
    most = min(len(base), len(variant) - 1)
    return next((at for at in range(most) if base[at] != variant[at]), most)


def branch(base: Run, whole: Sequence[int], variants: Sequence[Sequence[int]], tail: Sequence[int]) -> Run:
    """The run of `variants`, each followed by `tail`, that takes what they share with `whole` from the cache of `base`.

    Its logits [variants * (len(tail) + 1), V] are those before and after each token of the tail, variant by variant.
    """
    if base.loaded.prefix_lm:
        return _read_whole(base.loaded, variants, tail)
    shared = [_shared(whole, variant) for variant in variants]
    width = max(shared)
    run = copy.copy(base)
    run.cache = DynamicCache()
    for number, layer in enumerate(base.cache.layers):
        keys, values = (one[:, :, :width].expand(len(variants), -1, -1, -1) for one in (layer.keys, layer.values))
        run.cache.update(keys, values, number)
    run.seen = (torch.arange(width, device=base.seen.device) < torch.tensor(shared, device=base.seen.device)[:, None]).long()
    rests = [[*variant[common:], *tail] for variant, common in zip(variants, shared, strict=True)]
    run.extend(rests, keep=[len(tail) + 1] * len(variants))
    return run


def _read_whole(loaded: LoadedModel, variants: Sequence[Sequence[int]], tail: Sequence[int]) -> Run:
    """`branch` where nothing can be shared: what comes before a changed token has seen it too (prefix-LM)."""
    run = Run(loaded, variants)
    before = run.logits[:, None]
    run.extend([list(tail)] * len(variants), keep=[len(tail)] * len(variants))
    run.logits = torch.cat([before, run.logits.reshape(len(variants), len(tail), -1)], dim=1).flatten(0, 1)
    return run


@dataclass(frozen=True)
class _Place:
    """What the models say along a list [models, rows, places, V], from where a name begins."""

    lists: torch.Tensor
    begin: int

    def __call__(self, depth: int, node: int) -> torch.Tensor:
        return self.lists[:, :, self.begin + depth]


class _Asked:
    """What is asked of every variant: the list's ids, the states along it, and the tree of its names at the head."""

    def __init__(self, recommender: Recommender, case: Case) -> None:
        self._constraint = constraint = recommender.constraint
        self._bias = recommender.bias
        self._drugs = case.drugs
        self._start = case.start
        self._states, self._begins, self.ids = list_of(constraint, case)
        wanted = 0
        for drug in case.drugs:
            wanted |= 1 << int(constraint.trie.number[drug])
        firsts = sorted({constraint.name(drug)[0] for drug in case.drugs})
        self._tree = choice_tree(constraint, case.start.allowed, firsts, wanted)
        self._node = {node: at for at, node in enumerate(self._tree.nodes)}

    def __call__(self, runs: Sequence[Run]) -> Nats:
        """[2, rows, drugs] log probabilities; several models vote for whole names, as in `decoding.voting`."""
        lists = torch.stack([run.logits.cpu() for run in runs])
        lists = lists.reshape(len(runs), -1, len(self.ids) + 1, lists.shape[-1])
        width, rows = runs[0].columns - len(self.ids), list(range(lists.shape[1]))
        tree = self._tree
        if tree.nodes:
            heads = torch.stack([run.tree(rows, [width] * len(rows), *tree[1:]).cpu() for run in runs])
        found = np.zeros((2, lists.shape[1], len(self._drugs)))

        def at_head(depth: int, node: int) -> torch.Tensor:
            return heads[:, :, self._node[node]] if depth else lists[:, :, 0]

        for at, (drug, state, begin) in enumerate(zip(self._drugs, self._states, self._begins, strict=True)):
            found[0, :, at] = self._vote(drug, state, _Place(lists, begin))
            found[1, :, at] = self._vote(drug, self._start, at_head)
        return found

    def _vote(self, drug: int, state: State, said: Said) -> Nats:
        """[rows] log of the models' mean probability of a whole name."""
        each = self._name(drug, state, said)
        mean: Nats = (each.logsumexp(0) - np.log(len(each))).numpy()
        return mean

    def _name(self, drug: int, state: State, said: Said) -> torch.Tensor:
        """[models, rows] log probability of a name, of its ending where a longer one is possible included."""
        constraint, total = self._constraint, torch.zeros(1, 1, dtype=torch.float64)
        name = constraint.name(drug)
        for depth, token in enumerate(name):
            total = total + self._of(state, [token], depth, said)
            state = constraint.step(state, token)
        if constraint.could_grow(state):
            total = total + self._of(state, [constraint.ids.drug_separator, constraint.ids.end], len(name), said)
        return total.expand(*said(0, ROOT).shape[:2])

    def _of(self, state: State, tokens: Sequence[int], depth: int, said: Said) -> torch.Tensor:
        """[models, rows] log probability that one of `tokens` comes next, among the allowed."""
        allowed = self._constraint.allowed(state)
        if len(allowed) == 1:
            return torch.zeros(1, 1, dtype=torch.float64)
        logits = said(depth, state.node)
        rows = logits.shape[1]
        bias = None if self._bias is None else [self._bias.of(state, allowed)] * rows
        _, scores, _ = gathered(logits, range(rows), [allowed] * rows, bias)
        among = torch.from_numpy(np.isin(allowed, tokens))
        log_p = scores.double().log_softmax(-1)
        return log_p[..., among].logsumexp(-1)


def list_of(constraint: Constraint, case: Case) -> tuple[list[State], list[int], list[int]]:
    """The state where each drug begins, its place in the ids, and the ids of the list without its end.

    A listed drug stays allowed though another one of the list conflicts with it: any list can be asked about.
    """
    states: list[State] = []
    begins: list[int] = []
    ids: list[int] = []
    state = case.start
    left = 0
    for drug in case.drugs:
        left |= 1 << int(constraint.trie.number[drug])
    for drug in case.drugs:
        state = state._replace(allowed=state.allowed | left)
        states.append(state)
        begins.append(len(ids))
        ids += [*constraint.name(drug), constraint.ids.drug_separator]
        left &= ~(1 << int(constraint.trie.number[drug]))
        state = state._replace(
            allowed=constraint.without(state.allowed, drug),
            listed=state.listed + 1,
            taken=state.taken | 1 << int(constraint.trie.number[drug]),
        )
    return states, begins, ids[:-1]
