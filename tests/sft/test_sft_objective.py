"""Weights and penalty against slow oracles in lists and sets of names, on random vocabularies; no text, no trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from yaofang.data.answer import Answer, canonical_order, drug_frequency, parse, pieces
from yaofang.data.records import Record
from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.processors import answer_ids
from yaofang.glm.tiny import random_tiny
from yaofang.sft.answer_parts import DrugNames, find_answers, labels_of
from yaofang.sft.examples import Example
from yaofang.sft.objective import BalancedWeights, ConflictPenalty, Objective, PartWeights, Product, Sparse, objective_of
from yaofang.sft.parts import Data, Fresh, Model, Recipe, Tail, Training, Ward
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

WIDTH = 40
IDS = AnswerIds(
    opening=(20, 21, 22),
    diagnosis_separator=26,
    newline=20,
    header=(23, 24, 25),
    drug_separator=27,
    end=31,
    ends=frozenset({30, 31, 32}),
    text=np.array([*range(20), 21, 22, 23, 24, 25, 27], dtype=np.int64),
)
Name = tuple[int, ...]
Floats = npt.NDArray[np.float64]


@dataclass
class Case:
    """A vocabulary, its severities, and answers over it."""

    names: list[Name]
    severity: Floats
    lists: list[list[int]]
    rng: np.random.Generator

    @property
    def drug_names(self) -> DrugNames:
        return DrugNames(self.names, IDS)

    def answer(self, listed: Sequence[int]) -> list[int]:
        diagnoses = self.rng.integers(0, 19, self.rng.integers(0, 5)).tolist()
        return [*IDS.opening, *diagnoses, IDS.newline, *IDS.header, *in_ids(self.names, listed)]


def in_ids(names: Sequence[Name], listed: Sequence[int]) -> list[int]:
    ids = [token for drug in listed for token in (*names[drug], IDS.drug_separator)]
    return [*ids[:-1], IDS.end]


def random_case(seed: int) -> Case:
    """Names over few tokens, so that many share beginnings and some are prefixes of others."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(2, 9))
    names = [*{tuple(int(t) for t in rng.integers(0, tokens, rng.integers(1, 5))) for _ in range(rng.integers(2, 50))}]
    size = len(names)
    severity = np.where(rng.random((size, size)) < rng.choice([0.05, 0.3, 0.9]), rng.choice([0.5, 1.0], (size, size)), 0.0)
    lists = [rng.permutation(size)[: rng.integers(1, 8)].tolist() for _ in range(12)]
    return Case(names, np.triu(severity, 1), lists, rng)


def padded(answers: Sequence[Sequence[int]], prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One answer a row, after prompts of these lengths."""
    width = max(prompt + len(answer) for prompt, answer in zip(prompts, answers, strict=True)) + 1
    rows = [[-100] * prompt + [*answer] for prompt, answer in zip(prompts, answers, strict=True)]
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    return labels, torch.zeros_like(labels)


def packed(answers: Sequence[Sequence[int]], prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """All answers in one row."""
    labels = [token for prompt, answer in zip(prompts, answers, strict=True) for token in [-100] * prompt + [*answer]]
    sizes = [prompt + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return torch.tensor([labels]), torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[None]


def continuations(names: Sequence[Name], prefix: Name) -> dict[int | str, list[int]]:
    """What may follow a beginning, and the drugs that are then still possible; `closed` ends the name."""
    found: dict[int | str, list[int]] = {}
    for drug, name in enumerate(names):
        if name[: len(prefix)] == prefix:
            found.setdefault(name[len(prefix)] if len(name) > len(prefix) else "closed", []).append(drug)
    return found


# ---- reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_answers_and_their_drugs_are_found_in_padded_and_in_packed_rows(seed: int) -> None:
    case = random_case(seed)
    names, answers = case.drug_names, [case.answer(listed) for listed in case.lists]
    prompts = case.rng.integers(0, 6, len(answers)).tolist()
    for labels, documents in (padded(answers, prompts), packed(answers, prompts)):
        flat, found = labels.reshape(-1).numpy(), find_answers(labels.numpy(), documents.numpy(), IDS)
        assert [flat[parts.start : parts.stop].tolist() for parts in found] == answers
        read = [[int(names.trie.order[number]) for number, _ in names.listed(flat, parts)] for parts in found]
        assert read == case.lists


def test_a_conversation_has_no_parts() -> None:
    names = DrugNames([(1,), (2,)], IDS)
    talk = [5, 20, 6, 27, 1, 31]
    torn = [*IDS.opening, 3, 3, 31]
    other_header = [*IDS.opening, 3, IDS.newline, 23, 24, 9, 1, 31]
    labels, documents = packed([talk, torn, other_header], [1, 0, 0])
    assert find_answers(labels.numpy(), documents.numpy(), IDS) == []
    for weights in (PartWeights(IDS, 0.2, 3.0), BalancedWeights(names, np.array([1, 9]), [[0, 1]], 1.0)):
        assert torch.equal(weights(labels, documents), torch.ones(labels.shape))
    assert len(ConflictPenalty(names, np.array([[0, 1.0], [0, 0]]))(labels, documents).places) == 0


def test_a_name_outside_the_vocabulary_is_passed_over() -> None:
    names = DrugNames([(1,), (2,)], IDS)
    listed = [*IDS.opening, IDS.newline, *IDS.header, 1, 27, 5, 6, 27, 2, 31]
    labels, documents = padded([listed], [2])
    (parts,) = find_answers(labels.numpy(), documents.numpy(), IDS)
    assert [number for number, _ in names.listed(labels[0].numpy(), parts)] == [0, 1]
    found = ConflictPenalty(names, np.array([[0, 1.0], [0, 0]]))(labels, documents)
    assert found.tokens.tolist() == []  # 2 is all that is left once 1 is listed: it cannot be avoided


# ---- parts ----------------------------------------------------------------------------------------------------


def test_parts_are_weighted_from_the_newline_that_ends_the_diagnoses() -> None:
    whole = [*IDS.opening, 3, 26, 4, IDS.newline, *IDS.header, 1, 27, 2, 31]
    drugs_only = [*IDS.opening, IDS.newline, *IDS.header, 2, 31]
    labels, documents = packed([whole, [7, 8, 31], drugs_only], [2, 1, 0])
    expected = [1, 1, *[0.25] * 6, *[2] * 8, 1, 1, 1, 1, *[0.25] * 3, *[2] * 6]
    assert PartWeights(IDS, 0.25, 2.0)(labels, documents).tolist() == [expected]


# ---- balance --------------------------------------------------------------------------------------------------


def slow_balance(case: Case, counts: Sequence[int], listed: Sequence[int], mu: float) -> list[tuple[float, bool]]:
    """(v, whether the trie branches) for each id of a list."""
    total = sum(1 / counts[drug] for drug in listed)
    found = []
    for drug in listed:
        v = 0.1 + 1 / (1 + np.exp(-10 * (1 / counts[drug] / total - mu)))
        name = case.names[drug]
        found += [(v, len(continuations(case.names, name[:k])) > 1) for k in range(len(name) + 1)]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_balanced_weights_are_the_formula_on_tokens_where_the_trie_branches(seed: int) -> None:
    case = random_case(seed)
    names, counts = case.drug_names, case.rng.integers(1, 400, len(case.names))
    numbers = [[int(names.trie.number[drug]) for drug in listed] for listed in case.lists]
    half, whole = (BalancedWeights(names, counts, numbers, share) for share in (0.5, 1.0))
    mu = 0.3 * len(case.lists) / sum(map(len, case.lists))
    slow = [slow_balance(case, counts.tolist(), listed, mu) for listed in case.lists]
    mean = np.mean([v for found in slow for v, branches in found if branches])
    expected = [v / mean if branches else 1.0 for found in slow for v, branches in found]
    answers = [case.answer(listed) for listed in case.lists]
    labels, documents = packed(answers, [1] * len(answers))
    places = np.concatenate([range(p.first, p.stop) for p in find_answers(labels.numpy(), documents.numpy(), IDS)])
    given = whole(labels, documents)[0].numpy()
    assert given[places] == pytest.approx(expected, rel=1e-5)
    assert np.delete(given, places).tolist() == [1.0] * (len(given) - len(places))
    assert half(labels, documents)[0].numpy()[places] == pytest.approx((1 + np.array(expected)) / 2, rel=1e-5)


def test_the_mean_balanced_weight_of_deciding_tokens_is_one_and_the_rarest_drug_of_a_list_counts_most() -> None:
    case = random_case(3)
    names = case.drug_names
    counts = np.geomspace(1, 1300, len(case.names)).astype(int)
    numbers = [[int(names.trie.number[drug]) for drug in listed] for listed in case.lists]
    weights = BalancedWeights(names, counts, numbers, 1.0)
    tokens = [np.repeat(weights.of_list(found), [len(names.deciding[n]) for n in found]) for found in numbers]
    assert np.mean(np.concatenate(tokens)) == pytest.approx(1)
    for found in numbers:
        ordered = counts[names.trie.order[found]]
        assert weights.of_list(found)[ordered.argmin()] == weights.of_list(found).max()


def test_mu_is_five_hundredths_at_six_drugs_a_list() -> None:
    names = DrugNames([(n,) for n in range(12)], IDS)
    assert BalancedWeights(names, np.ones(12), [[*range(6)], [*range(6, 12)]], 1.0).mu == pytest.approx(0.05)
    assert BalancedWeights(names, np.ones(12), [[0, 1, 2], [*range(9)]], 1.0).mu == pytest.approx(0.05)


# ---- conflicts ------------------------------------------------------------------------------------------------


def slow_penalty(case: Case, listed: Sequence[int], ids: AnswerIds = IDS) -> set[tuple[int, int, float]]:
    """{(offset in the list, token, severity)} of one list."""
    both = np.maximum(case.severity, case.severity.T)
    found, offset = set(), 0
    for place, drug in enumerate(listed):
        before = list(listed[:place])

        def least(below: Sequence[int], before: Sequence[int] = before) -> float:
            return min((max([both[j, i] for i in before], default=0) for j in below if j not in before), default=np.inf)

        name = case.names[drug]
        for k in range(len(name) + 1):
            options = {option: least(below) for option, below in continuations(case.names, name[:k]).items()}
            floor = min(options.values())
            for option, severity in options.items():
                tokens = (ids.drug_separator, ids.end) if option == "closed" else (option,)
                if floor < severity < np.inf:
                    found |= {(offset + k, int(token), severity - floor) for token in tokens}
        offset += len(name) + 1
    return found


@pytest.mark.parametrize("seed", range(24))
def test_penalised_ids_are_those_after_which_the_conflict_cannot_be_avoided(seed: int) -> None:
    case = random_case(seed)
    penalty = ConflictPenalty(case.drug_names, case.severity)
    answers = [case.answer(listed) for listed in case.lists]
    labels, documents = packed(answers, case.rng.integers(0, 3, len(answers)).tolist())
    firsts = [parts.first for parts in find_answers(labels.numpy(), documents.numpy(), IDS)]
    expected = {
        (first + offset, token, severity)
        for first, listed in zip(firsts, case.lists, strict=True)
        for offset, token, severity in slow_penalty(case, listed)
    }
    found = penalty(labels, documents)
    assert len(found.places) == len(expected)
    assert set(zip(found.places.tolist(), found.tokens.tolist(), found.severity.tolist(), strict=True)) == expected


def test_random_cases_hold_names_that_are_prefixes_and_penalties_inside_names() -> None:
    cases = [random_case(seed) for seed in range(24)]
    assert sum(a != b and b[: len(a)] == a for case in cases for a in case.names for b in case.names) > 20
    inside = 0
    for case in cases:
        starts = {n for listed in case.lists for n in np.cumsum([0, *(len(case.names[d]) + 1 for d in listed)]).tolist()}
        inside += sum(offset not in starts for listed in case.lists for offset, _, _ in slow_penalty(case, listed))
    assert inside > 20


def expected_severity(found: Sparse, logits: Tensor) -> Tensor:
    """sum of severity * p(token) at each place of one row, [length]: what the forward subtracts, by the dense softmax."""
    p = torch.log_softmax(logits, -1).exp()[found.places, found.tokens]
    return torch.zeros(len(logits)).index_add(0, found.places, p * found.severity)


def test_where_names_are_single_ids_the_penalty_is_the_specifications_row_of_y_a_y() -> None:
    rng = np.random.default_rng(5)
    size, listed = 15, [3, 11, 0, 7]
    severity = np.triu(rng.choice([0, 0, 0, 0.5, 1.0], (size, size)), 1)
    both = severity + severity.T
    both[14] = both[:, 14] = 0  # one drug is free of conflicts
    names = DrugNames([(n,) for n in range(size)], IDS)
    labels = torch.tensor([in_ids([(n,) for n in range(size)], listed)])
    labels = torch.cat([torch.tensor([[*IDS.opening, IDS.newline, *IDS.header]]), labels], dim=1)
    logits = torch.from_numpy(rng.normal(size=(labels.shape[1], WIDTH))).float()
    found = expected_severity(ConflictPenalty(names, both)(labels, torch.zeros_like(labels)), logits)
    p = torch.log_softmax(logits, -1).exp().numpy()
    for place in range(1, 4):
        at = len(IDS.opening) + 1 + len(IDS.header) + 2 * place
        before = listed[:place]
        # A drug that is listed already is no conflict and cannot come again.
        row = sum(both[j, before].max() * p[at, j] for j in range(size) if j not in before)
        assert row > 0
        assert found[at].item() == pytest.approx(row, rel=1e-5)


def train_table(found: Sparse | None, lists: Sequence[Sequence[int]], strength: float) -> Tensor:
    """Logits [id, next id] of a model that sees one id, trained on these lists; returns its probabilities."""
    rows = torch.tensor([[IDS.newline, *row] for row in lists])
    table = torch.zeros(WIDTH, WIDTH, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.3)
    for _ in range(80):
        logits = table[rows[:, :-1]].reshape(-1, WIDTH)
        loss = torch.nn.functional.cross_entropy(logits, rows[:, 1:].reshape(-1))
        if found is not None:
            loss = loss + strength * expected_severity(found, logits).sum() / len(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.log_softmax(table.detach(), -1).exp()


def test_optimising_the_penalty_moves_mass_from_drugs_in_conflict_to_the_others() -> None:
    # The model knows the separator only, so it writes 1 (in conflict with 0) as often after 0 as the lists do: one in three.
    names = [(0,), (1,), (2,)]
    lists = [in_ids(names, listed) for listed in ([0, 1], [0, 2], [0, 2])]
    severity = np.zeros((3, 3))
    severity[0, 1] = 1
    labels, documents = torch.tensor(lists), torch.zeros(3, 4, dtype=torch.long)
    head = torch.tensor([[*IDS.opening, IDS.newline, *IDS.header]] * 3)
    whole = ConflictPenalty(DrugNames(names, IDS), severity)(
        torch.cat([head, labels], 1), torch.zeros(3, head.shape[1] + 4, dtype=torch.long)
    )
    row, offset = whole.places // (head.shape[1] + 4), whole.places % (head.shape[1] + 4) - head.shape[1]
    found = Sparse(row * documents.shape[1] + offset, whole.tokens, whole.severity)
    plain, light, strong = (train_table(found, lists, strength)[IDS.drug_separator] for strength in (0, 1, 5))
    assert plain[1].item() == pytest.approx(1 / 3, abs=0.02)
    assert plain[1] > light[1] + 0.05
    assert light[1] > strong[1] + 0.05
    assert strong[2] > plain[2] + 0.1


# ---- packed and padded ----------------------------------------------------------------------------------------


def by_answer(labels: Tensor, documents: Tensor, values: Tensor) -> list[list[float]]:
    flat = values.reshape(-1)
    return [flat[p.start : p.stop].tolist() for p in find_answers(labels.numpy(), documents.numpy(), IDS)]


@pytest.mark.parametrize("seed", range(4))
def test_packed_rows_have_the_same_weights_and_penalties_as_single_ones(seed: int) -> None:
    case = random_case(seed)
    names = case.drug_names
    numbers = [[int(names.trie.number[drug]) for drug in listed] for listed in case.lists]
    balanced = BalancedWeights(names, case.rng.integers(1, 99, len(case.names)), numbers, 0.7)
    weights, penalty = Product([PartWeights(IDS, 0.3, 2.0), balanced]), ConflictPenalty(names, case.severity)
    answers = [case.answer(listed) for listed in case.lists]
    found = []
    for labels, documents in (padded(answers, [4] * len(answers)), packed(answers, [0] * len(answers))):
        sparse, dense = penalty(labels, documents), torch.zeros(labels.numel(), WIDTH)
        dense[sparse.places, sparse.tokens] = sparse.severity
        given = weights(labels, documents)
        assert given.shape == labels.shape
        found.append((by_answer(labels, documents, given), by_answer(labels, documents, dense @ torch.arange(1.0, WIDTH + 1))))
    assert found[0] == found[1]


# ---- from a recipe --------------------------------------------------------------------------------------------

TEMPLATE = random_tiny().template
RECORDS = [
    Record(patient=1, id="1-1", diagnoses=("2型糖尿病",), drugs=("阿卡波糖", "阿托伐他汀钙片", "二甲双胍")),
    Record(patient=2, id="2-1", diagnoses=("高血压",), drugs=("阿托伐他汀钙片", "阿卡波糖", "碳酸钙片")),
    Record(patient=3, id="3-1", drugs=("阿卡波糖",)),
]


def answer_drugs(example: Example) -> tuple[str, ...]:
    said = [token for token, trained in zip(example.input_ids, example.completion_mask, strict=True) if trained]
    return parse(TEMPLATE.decode(said)).drugs


def recipe(**tail: float) -> Recipe:
    training = {key: tail.pop(key) for key in ("diagnosis_weight", "drug_weight") if key in tail}
    return Recipe(
        model=Model(fresh=Fresh()),
        data=Data(ward=Ward(patients=10)),
        tail=Tail.model_validate(tail),
        training=Training.model_validate(training),
    )


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    found = []
    for record in RECORDS:
        answer = pieces(Answer(record.diagnoses, canonical_order(record.drugs, drug_frequency(RECORDS))))
        found.append(Example(record.id, *TEMPLATE.example([{"role": "user", "content": "患者"}], answer), ()))
    return found


def test_a_recipe_that_turns_nothing_on_has_no_objective(examples: list[Example]) -> None:
    assert objective_of(recipe(), TEMPLATE, load_vocabulary(), {}, examples) == Objective(None, None, 0)


def test_a_recipe_turns_on_each_part_by_itself_and_weights_multiply(examples: list[Example]) -> None:
    vocabulary, counts = load_vocabulary(), drug_frequency(RECORDS)
    parts = objective_of(recipe(drug_weight=2.0), TEMPLATE, vocabulary, counts, examples)
    balance = objective_of(recipe(balance=0.5), TEMPLATE, vocabulary, counts, examples)
    both = objective_of(recipe(diagnosis_weight=0.5, drug_weight=2.0, balance=0.5), TEMPLATE, vocabulary, counts, examples)
    assert isinstance(parts.weights, PartWeights)
    assert isinstance(balance.weights, BalancedWeights)
    assert both.weights is not None
    assert parts.penalty is balance.penalty is both.penalty is None
    labels = torch.from_numpy(labels_of(examples[0]))
    documents = torch.zeros_like(labels)
    (place,) = find_answers(labels.numpy(), documents.numpy(), answer_ids(TEMPLATE))
    product = (parts.weights(labels, documents) * balance.weights(labels, documents))[0]
    assert torch.allclose(both.weights(labels, documents)[0, place.drugs :], product[place.drugs :])
    assert both.weights(labels, documents)[0, place.start : place.drugs].tolist() == [0.5] * (place.drugs - place.start)


def test_contraindicated_drugs_are_penalised_by_the_bundled_table(examples: list[Example]) -> None:
    vocabulary = load_vocabulary()
    found = objective_of(recipe(conflict_penalty=0.3), TEMPLATE, vocabulary, {}, examples)
    assert found.weights is None
    assert found.strength == 0.3
    assert found.penalty is not None
    labels = torch.from_numpy(labels_of(examples[1]))
    ids = answer_ids(TEMPLATE)
    tier1 = (load_conflicts(vocabulary).tiers == 1).astype(np.float64)
    case = Case([tuple(TEMPLATE.encode(label)) for label in vocabulary.labels], tier1, [], np.random.default_rng(0))
    listed = [vocabulary.index(label) for label in answer_drugs(examples[1])]
    (parts,) = find_answers(labels.numpy(), np.zeros_like(labels), ids)
    expected = {(parts.first + offset, token, severity) for offset, token, severity in slow_penalty(case, listed, ids)}
    sparse = found.penalty(labels, torch.zeros_like(labels))
    assert expected
    assert set(zip(sparse.places.tolist(), sparse.tokens.tolist(), sparse.severity.tolist(), strict=True)) == expected


def test_balance_without_any_drug_list_is_refused() -> None:
    ids, mask = TEMPLATE.example([{"role": "user", "content": "你好"}], pieces(Answer(("高血压",), ()))[:2])
    talk = [Example("a", ids, mask, ())]
    with pytest.raises(InputError, match=r"tail\.balance"):
        objective_of(recipe(balance=1.0), TEMPLATE, load_vocabulary(), {}, talk)
