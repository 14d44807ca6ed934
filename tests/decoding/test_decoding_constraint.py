"""The trie and the constraint against a slow oracle, on random vocabularies, conflicts and logits; no model, no text."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.reading import read
from yaofang.decoding.states import StatesByIds
from yaofang.decoding.trie import ROOT, Trie, bits, members

WIDTH = 40
ENDS = frozenset({30, 31, 32})
IDS = AnswerIds(
    opening=(20, 21, 22),
    diagnosis_separator=26,
    newline=20,
    header=(23, 24, 25),
    drug_separator=27,
    end=31,
    ends=ENDS,
    text=np.array([*range(20), 21, 22, 23, 24, 25, 27], dtype=np.int64),
)
Names = list[tuple[int, ...]]
Matrix = npt.NDArray[np.bool_]


def free(size: int) -> Matrix:
    return np.zeros((size, size), dtype=np.bool_)


def pair(size: int, *pairs: tuple[int, int]) -> Matrix:
    matrix = free(size)
    for a, b in pairs:
        matrix[a, b] = True
    return matrix


def in_list(constraint: Constraint, **which: Sequence[int]) -> State:
    return constraint.start(Phase.LIST, **which)


def after(constraint: Constraint, state: State, *ids: int) -> State:
    for token in ids:
        state = constraint.step(state, token)
    return state


def offered(constraint: Constraint, state: State) -> set[int]:
    return set(constraint.allowed(state).tolist())


def random_case(rng: np.random.Generator) -> tuple[Names, Matrix]:
    """Names over few tokens, so that many share beginnings and some are prefixes of others; any density of conflicts."""
    size = int(rng.integers(1, 80))
    tokens = int(rng.integers(1, 9))
    names = {tuple(int(t) for t in rng.integers(0, tokens, rng.integers(1, 6))) for _ in range(size)}
    order = list(names)
    rng.shuffle(order)
    return order, rng.random((len(order), len(order))) < rng.choice([0.0, 0.02, 0.1, 0.5, 0.95], p=[0.2, 0.4, 0.2, 0.1, 0.1])


class Oracle:
    """The list's rule in sets and strings of ids: slow, written apart from the constraint, shares nothing with it."""

    def __init__(self, names: Names, conflicts: Matrix, banned: set[int], most: int) -> None:
        self.names, self.most = names, most
        self.clash = {frozenset((int(a), int(b))) for a, b in np.argwhere(conflicts)}
        self.banned = banned

    def may_follow(self, listed: Sequence[int]) -> set[int]:
        return {
            drug
            for drug in range(len(self.names))
            if drug not in self.banned
            and drug not in listed
            and not any(frozenset((drug, other)) in self.clash for other in listed)
        }

    def next_ids(self, written: Sequence[int]) -> set[int]:
        *done, current = split(written)
        listed = [self.names.index(name) for name in done]
        open_now = self.may_follow(listed)
        found = set()
        for drug in open_now:
            name = self.names[drug]
            if name == current:
                found.add(IDS.end)
                if self.may_follow([*listed, drug]) and len(listed) + 1 < self.most:
                    found.add(IDS.drug_separator)
            elif name[: len(current)] == current:
                found.add(name[len(current)])
        return found or {IDS.end}


def split(written: Sequence[int]) -> Names:
    parts: Names = [()]
    for token in written:
        if token == IDS.drug_separator:
            parts.append(())
        else:
            parts[-1] += (token,)
    return parts


def write_list(constraint: Constraint, start: State, rng: np.random.Generator, temperature: float) -> list[int]:
    """One list from a model of random logits under the mask; temperature 0 takes the best."""
    state, ids = start, list[int]()
    while state.phase == Phase.LIST:
        allowed = constraint.allowed(state)
        assert len(allowed), "dead end"
        logits = rng.normal(size=WIDTH) * temperature
        logits[IDS.end] -= 4.0
        ids.append(int(allowed[np.argmax(logits[allowed] + rng.gumbel(size=len(allowed)))]))
        state = constraint.step(state, ids[-1])
        assert len(ids) < 1000, "a list that never ends"
    assert state.phase == Phase.DONE
    return ids


def check_lists(lists: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    drugs: list[int] = []
    while len(drugs) < lists:
        names, conflicts = random_case(rng)
        banned = {int(d) for d in np.flatnonzero(rng.random(len(names)) < rng.choice([0.0, 0.3, 1.0], p=[0.6, 0.3, 0.1]))}
        most = int(rng.integers(1, 40))
        constraint = Constraint(names, conflicts, IDS, max_drugs=most)
        oracle = Oracle(names, conflicts, banned, most)
        start = in_list(constraint, banned=banned)
        for _ in range(20):
            ids = write_list(constraint, start, rng, temperature=float(rng.choice([0.1, 1.0, 5.0])))
            drugs.append(check_one(constraint, oracle, start, ids))
    assert np.mean(drugs) > 4, "lists too short to say much"
    assert max(drugs) > 15


def check_one(constraint: Constraint, oracle: Oracle, start: State, ids: list[int]) -> int:
    """Check one list; the number of its drugs."""
    reading = read(constraint, start, ids)
    drugs = reading.drugs
    assert not reading.truncated
    assert [oracle.names[d] for d in drugs] == [name for name in split(ids[:-1]) if name], "a name outside"
    assert len(set(drugs)) == len(drugs), "a repeat"
    assert not any(frozenset((a, b)) in oracle.clash for a in drugs for b in drugs if a != b), "a pair"
    assert not oracle.banned & set(drugs)
    assert len(drugs) <= oracle.most
    if oracle.may_follow([]):
        assert drugs, "an empty list though a drug was allowed"
    return len(drugs)


def test_5000_random_lists_have_no_name_outside_no_repeat_no_pair_and_no_dead_end() -> None:
    check_lists(5_000, seed=1)


@pytest.mark.nightly
def test_20000_random_lists_have_no_name_outside_no_repeat_no_pair_and_no_dead_end() -> None:
    check_lists(20_000, seed=2)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_offered_equals_a_slow_oracle_at_every_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names, conflicts = random_case(rng)
    constraint = Constraint(names, conflicts, IDS, max_drugs=4)
    oracle = Oracle(names, conflicts, {0}, 4)
    start = state = in_list(constraint, banned=[0])
    for at, token in enumerate(ids := write_list(constraint, start, rng, 1.0)):
        assert offered(constraint, state) == oracle.next_ids(ids[:at])
        state = constraint.step(state, token)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, WIDTH - 1), max_size=40), st.integers(0, 1000))
def test_any_ids_whatever_never_raise_and_never_read_as_a_bad_list(ids: list[int], seed: int) -> None:
    names, conflicts = random_case(np.random.default_rng(seed))
    constraint = Constraint(names, conflicts, IDS)
    start = in_list(constraint)
    drugs = read(constraint, start, ids).drugs
    assert len(set(drugs)) == len(drugs)
    assert not any((conflicts | conflicts.T)[a, b] for a in drugs for b in drugs if a != b)
    assert len(constraint.allowed(after(constraint, start, *ids)))
    reading = read(constraint, constraint.start(), ids)
    assert all(first < end for first, end in [*reading.diagnoses, *reading.spans])


def test_a_name_that_is_an_end_and_a_prefix_offers_both() -> None:
    constraint = Constraint([(1, 2), (1, 2, 3), (4,)], free(3), IDS)
    state = after(constraint, in_list(constraint), 1, 2)
    assert offered(constraint, state) == {3, IDS.drug_separator, IDS.end}


def test_a_banned_prefix_does_not_end_but_still_leads_to_the_longer_name() -> None:
    constraint = Constraint([(1, 2), (1, 2, 3), (4,)], free(3), IDS)
    state = after(constraint, in_list(constraint, banned=[0]), 1, 2)
    assert offered(constraint, state) == {3}
    assert constraint.completed(state) == -1


def test_a_listed_longer_name_leaves_only_its_prefix() -> None:
    constraint = Constraint([(1, 2), (1, 2, 3)], free(2), IDS)
    state = after(constraint, in_list(constraint), 1, 2, 3, IDS.drug_separator, 1, 2)
    assert offered(constraint, state) == {IDS.end}


def test_the_separator_is_offered_only_if_another_drug_could_follow() -> None:
    constraint = Constraint([(1,), (2,), (3,)], pair(3, (0, 1), (0, 2)), IDS)
    assert offered(constraint, after(constraint, in_list(constraint), 1)) == {IDS.end}
    assert offered(constraint, after(constraint, in_list(constraint), 2)) == {IDS.end, IDS.drug_separator}


def test_the_last_place_of_a_full_list_offers_no_separator() -> None:
    constraint = Constraint([(1,), (2,), (3,)], free(3), IDS, max_drugs=2)
    state = after(constraint, in_list(constraint), 1, IDS.drug_separator, 2)
    assert offered(constraint, state) == {IDS.end}


@pytest.mark.parametrize("which", [{"banned": [0, 1]}, {"only": []}])
def test_an_all_banned_list_offers_the_end(which: dict[str, list[int]]) -> None:
    constraint = Constraint([(1,), (2,)], free(2), IDS)
    assert offered(constraint, in_list(constraint, **which)) == {IDS.end}


def test_an_empty_vocabulary_offers_the_end() -> None:
    constraint = Constraint([], free(0), IDS)
    assert offered(constraint, in_list(constraint)) == {IDS.end}


def test_a_filler_beam_that_left_the_trie_is_parked_and_offered_the_end() -> None:
    constraint = Constraint([(1, 2), (4,)], free(2), IDS)
    state = after(constraint, in_list(constraint), 9, 1, 2, IDS.drug_separator, 4)
    assert state.phase == Phase.PARKED
    assert offered(constraint, state) == {IDS.end}
    assert read(constraint, in_list(constraint), [9, 4, IDS.end]).drugs == []


@pytest.mark.parametrize("end", sorted(ENDS))
def test_each_of_the_three_end_ids_ends_a_row_but_only_the_trained_one_is_offered(end: int) -> None:
    constraint = Constraint([(1,), (2,)], free(2), IDS)
    state = after(constraint, in_list(constraint), 1)
    assert offered(constraint, state) & ENDS == {IDS.end}
    assert constraint.step(state, end).phase == Phase.DONE
    assert read(constraint, in_list(constraint), [1, end, 2, end]).drugs == [0]


def test_an_asymmetric_table_acts_both_ways_and_a_drug_against_itself_does_not_ban_it() -> None:
    constraint = Constraint([(1,), (2,), (3,)], pair(3, (0, 1), (2, 2)), IDS)
    assert offered(constraint, after(constraint, in_list(constraint), 1, IDS.drug_separator)) == {3}
    assert offered(constraint, after(constraint, in_list(constraint), 2, IDS.drug_separator)) == {3}
    assert 3 in offered(constraint, in_list(constraint))


def test_a_name_cut_by_the_budget_is_no_drug_and_the_row_counts_as_truncated() -> None:
    constraint = Constraint([(1, 2), (1, 2, 3), (4, 5), (6,)], free(4), IDS)
    separator = IDS.drug_separator
    assert read(constraint, in_list(constraint), [6, separator, 4]).drugs == [3]
    assert read(constraint, in_list(constraint), [6, separator, 1, 2]).drugs == [3], "it might have become the longer name"
    whole = read(constraint, in_list(constraint), [6, separator, 4, 5])
    assert (whole.drugs, whole.spans, whole.truncated) == ([3, 2], [(0, 1), (2, 4)], True)


def test_state_is_a_function_of_ids_so_beams_may_be_reordered_doubled_and_dropped() -> None:
    rng = np.random.default_rng(3)
    names, conflicts = random_case(rng)
    constraint = Constraint(names, conflicts, IDS)
    start = in_list(constraint)
    states = StatesByIds(constraint)
    rows: list[list[int]] = [[] for _ in range(6)]
    for _ in range(30):
        found = states.of([start] * 6, rows)
        assert found == [after(constraint, start, *row) for row in rows]
        picked = rng.integers(0, 6, 6)
        rows = [[*rows[i], int(rng.choice(constraint.allowed(found[i])))] for i in picked]


def test_continued_rows_are_read_from_their_start() -> None:
    constraint = Constraint([(1,), (2,)], free(2), IDS)
    fresh = StatesByIds(constraint)
    start = in_list(constraint)
    assert fresh.of([start], [[1, IDS.drug_separator, 2]]) == [after(constraint, start, 1, IDS.drug_separator, 2)]


def test_the_whole_answer_is_opening_then_diagnoses_then_header_then_list() -> None:
    constraint = Constraint([(1,), (2,)], free(2), IDS)
    start = constraint.start()
    ids = [20, 21, 22, 5, 6, 26, 7, 27, 8, 20, 23, 24, 25, 2, 27, 1, 31]
    state = start
    for token in ids:
        assert token in offered(constraint, state)
        state = constraint.step(state, token)
    reading = read(constraint, start, ids)
    assert [ids[first:end] for first, end in reading.diagnoses] == [[5, 6], [7, 27, 8]]
    assert reading.drugs == [1, 0]
    assert reading.state.phase == Phase.DONE


def test_no_diagnosis_is_empty() -> None:
    constraint = Constraint([(1,)], free(1), IDS)
    begin = after(constraint, constraint.start(), *IDS.opening)
    assert not offered(constraint, begin) & {IDS.diagnosis_separator, IDS.newline}
    inside = constraint.step(begin, 5)
    assert offered(constraint, inside) >= {IDS.diagnosis_separator, IDS.newline}
    assert not offered(constraint, constraint.step(inside, IDS.diagnosis_separator)) & {26, 20}


def test_the_diagnoses_offer_no_end_no_special_and_no_spare_row() -> None:
    constraint = Constraint([(1,)], free(1), IDS)
    inside = after(constraint, constraint.start(), *IDS.opening, 5)
    assert offered(constraint, inside) == {*IDS.text.tolist(), IDS.diagnosis_separator, IDS.newline}
    assert not offered(constraint, inside) & {*ENDS, *range(33, WIDTH)}


def test_a_used_up_diagnosis_budget_forces_the_newline_and_the_header() -> None:
    constraint = Constraint([(1,)], free(1), IDS, max_diagnosis_tokens=3)
    state = after(constraint, constraint.start(), *IDS.opening, 5, 6, 7)
    for token in (IDS.newline, *IDS.header):
        assert offered(constraint, state) == {token}
        state = constraint.step(state, token)
    assert (state.phase, offered(constraint, state)) == (Phase.LIST, {1})


def test_a_diagnosis_that_was_cut_is_still_read() -> None:
    constraint = Constraint([(1,)], free(1), IDS)
    reading = read(constraint, constraint.start(), [*IDS.opening, 5, 26, 6])
    assert reading.diagnoses == [(3, 4), (5, 6)]
    assert reading.truncated


@pytest.mark.parametrize(
    ("names", "conflicts"),
    [
        ([(1,), ()], free(2)),
        ([(1,), (1,)], free(2)),
        ([(1, 27)], free(1)),
        ([(1, 30)], free(1)),
        ([(1,)], free(2)),
        ([(1,)], np.zeros((1, 1))),
    ],
    ids=["empty name", "same ids", "separator in a name", "end in a name", "wrong shape", "wrong type"],
)
def test_names_and_conflicts_that_make_no_sense_are_refused(names: Names, conflicts: Matrix) -> None:
    with pytest.raises(ValueError, match=r"name|conflicts"):
        Constraint(names, conflicts, IDS)


def test_drugs_below_a_node_are_one_interval() -> None:
    names, _ = random_case(np.random.default_rng(8))
    trie = Trie(names)
    for drug, name in enumerate(trie.names):
        node = ROOT
        for depth, token in enumerate(name, 1):
            node = trie.children[node][token]
            same = [other for other, rival in enumerate(trie.names) if rival[:depth] == name[:depth]]
            assert members(trie.below[node]) == same == list(range(same[0], same[-1] + 1))
        assert trie.ending[node] == drug
    assert [names[position] for position in trie.order] == list(trie.names)
    assert [int(trie.order[trie.number[position]]) for position in range(len(names))] == list(range(len(names)))


def test_bits_and_members_are_inverse() -> None:
    vector = np.random.default_rng(0).random(700) < 0.3
    assert members(bits(vector)) == np.flatnonzero(vector).tolist()


def test_a_step_of_a_list_of_651_names_takes_microseconds() -> None:
    rng = np.random.default_rng(5)
    names = list({tuple(int(t) for t in rng.integers(0, 20, rng.integers(3, 9))) for _ in range(651)})
    constraint = Constraint(names, rng.random((len(names), len(names))) < 0.01, IDS)
    start = in_list(constraint)
    rows = [write_list(constraint, start, rng, 1.0) for _ in range(30)]
    begun = time.perf_counter()
    for row in rows:
        state = start
        for token in row:
            constraint.allowed(state)
            state = constraint.step(state, token)
    # Far above what it takes (some 4 microseconds), so that a busy machine does not fail.
    assert (time.perf_counter() - begun) / sum(map(len, rows)) < 1e-3


def test_the_core_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, yaofang.decoding.constraint; print({'torch', 'transformers', 'yaofang.data'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_trie_and_constraint_are_under_500_lines_together() -> None:
    assert sum(len(Path(inspect.getfile(one)).read_text(encoding="utf-8").splitlines()) for one in (Trie, Constraint)) < 500
