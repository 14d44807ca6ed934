"""The plan of a run: how often rows are seen, in which order, and in which order their drugs stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from yaofang.data.answer import Answer, parse, pieces
from yaofang.decoding.processors import answer_ids
from yaofang.glm.tiny import random_tiny
from yaofang.sft.examples import Example
from yaofang.sft.parts import Data, Fresh, Model, Recipe, Tail, Training, Ward
from yaofang.sft.plan_examples import PlannedRun, by_length, plan_examples, repeat_factors, times_seen
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

TEMPLATE = random_tiny().template
IDS = answer_ids(TEMPLATE)
LABELS = load_vocabulary().labels


def example(name: str, drugs: Sequence[str], diagnoses: Sequence[str] = ("高血压",), prompt: str = "患者") -> Example:
    answer = pieces(Answer(tuple(diagnoses), tuple(drugs)))
    return Example(name, *TEMPLATE.example([{"role": "user", "content": prompt}], answer), ())


def conversation(name: str) -> Example:
    return Example(name, *TEMPLATE.example([{"role": "user", "content": "你好"}], ["\n", "您好、请讲"]), ())


def answer_of(made: Example) -> Answer:
    said = [token for token, trained in zip(made.input_ids, made.completion_mask, strict=True) if trained]
    return parse(TEMPLATE.decode(said))


def recipe(
    *, order: str = "canonical", packing: bool = False, below: float = 0, at_most: float = 3, **training: float
) -> Recipe:
    return Recipe(
        model=Model(fresh=Fresh()),
        data=Data(ward=Ward(patients=10), drug_order=order, packing=packing),
        tail=Tail(repeat_below=below, repeat_at_most=at_most),
        training=Training.model_validate(training),
    )


def long_tailed(rows: int, seed: int) -> list[Example]:
    """Records whose drugs fall off like 1 / rank over forty labels."""
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(1, 41)
    chance /= chance.sum()
    lists = [rng.choice(40, size=rng.integers(1, 7), replace=False, p=chance) for _ in range(rows)]
    return [example(str(row), [LABELS[drug] for drug in found]) for row, found in enumerate(lists)]


def epochs_of(plan: PlannedRun) -> list[list[Example]]:
    ends = np.cumsum(plan.sizes).tolist()
    return [plan.examples[end - size : end] for end, size in zip(ends, plan.sizes, strict=True)]


# ---- nothing on -----------------------------------------------------------------------------------------------


def test_a_recipe_that_asks_for_nothing_leaves_the_examples_and_their_shuffling_to_the_trainer() -> None:
    examples = long_tailed(6, 0)
    for weights in (None, [1.0] * 6):
        assert plan_examples(recipe(epochs=2.5), examples, IDS, weights) == PlannedRun(examples, 2.5, shuffle=True)


# ---- repeat factors -------------------------------------------------------------------------------------------


def test_records_are_seen_by_the_root_of_how_rare_their_rarest_drug_is() -> None:
    # Of 100 records all have 0, 25 have 1, 4 have 2, and 1 has 3: shares 1, 1/4, 1/25, 1/100; below = 1/4.
    lists = [
        [0, *([1] if row < 25 else []), *([2] if row % 25 == 0 else []), *([3] if row == 50 else [])] for row in range(100)
    ]
    factors = repeat_factors(lists, np.ones(100), 0.25, 100)
    assert factors[1] == factors[99] == 1
    assert factors[0] == factors[25] == pytest.approx(2.5)
    assert factors[50] == pytest.approx(5)
    assert repeat_factors(lists, np.ones(100), 0.25, 3)[50] == 3
    # Rows without a drug are neither repeated nor among those of which a drug has a share; a drug named twice is one.
    assert repeat_factors([[], [], [1, 1], [2], [2]], np.ones(5), 0.6, 3).tolist() == pytest.approx([1, 1, 1.8**0.5, 1, 1])


def test_a_record_with_three_rare_drugs_is_seen_no_more_than_one_with_the_rarest_alone() -> None:
    common = [[0]] * 96
    lists = [*common, [1], [1], [2, 3, 4], [2, 3], [5]]
    factors = repeat_factors(lists, np.ones(len(lists)), 0.05, 10)
    assert factors[-3] == factors[-1] > factors[-4] == factors[-5] > 1


def test_a_drug_that_few_weighted_rows_have_is_rare() -> None:
    factors = repeat_factors([[0], [1], [1]], np.array([2.0, 1.0, 1.0]), 0.5, 9)
    assert factors.tolist() == [1, 1, 1]
    factors = repeat_factors([[0], [1], [1]], np.array([2.0, 0.25, 0.25]), 0.8, 9)
    assert factors[0] == 1
    assert factors[1:].tolist() == pytest.approx([2, 2])


def test_labels_are_seen_as_often_as_the_formula_says() -> None:
    examples, below, epochs = long_tailed(400, 1), 0.1, 12
    plan = plan_examples(recipe(below=below, at_most=2.6, epochs=epochs), examples, IDS)
    drugs = [answer_of(made).drugs for made in examples]
    share = Counter(drug for found in drugs for drug in found)
    expected: Counter[str] = Counter()
    for found in drugs:
        for drug in found:
            expected[drug] += min(max(1, np.sqrt(below / (min(share[d] for d in found) / 400))), 2.6)
    seen = Counter(drug for made in plan.examples for drug in drugs[int(made.id)])
    assert plan.epochs == 1
    assert not plan.shuffle
    for drug, count in expected.items():
        # After 12 epochs a row is less than one time off, whatever the chance.
        assert abs(seen[drug] - epochs * count) < share[drug]
    assert sum(seen.values()) == pytest.approx(epochs * sum(expected.values()), rel=0.01)
    rare = min(share, key=lambda drug: share[drug])
    assert seen[rare] > 2 * epochs * share[rare]


def test_every_epoch_holds_each_record_at_least_once_and_none_beyond_the_cap() -> None:
    examples = long_tailed(200, 2)
    plan = plan_examples(recipe(below=0.3, at_most=3, epochs=4), examples, IDS)
    for epoch in epochs_of(plan):
        seen = Counter(made.id for made in epoch)
        assert len(seen) == 200
        assert max(seen.values()) == 3


def test_epochs_follow_each_other_in_orders_of_their_own_that_the_seed_decides() -> None:
    examples = long_tailed(60, 3)
    plan = plan_examples(recipe(below=0.2, epochs=3), examples, IDS)
    orders = [[made.id for made in epoch] for epoch in epochs_of(plan)]
    assert orders[0][:40] != orders[1][:40] != orders[2][:40]
    assert orders[0] != sorted(orders[0], key=int)
    once = plan_examples(recipe(order="shuffled", epochs=2), examples, IDS)
    first, second = ([made.id for made in epoch] for epoch in epochs_of(once))
    assert first != second
    assert sorted(first) == sorted(second)
    assert plan == plan_examples(recipe(below=0.2, epochs=3), examples, IDS)
    assert plan != plan_examples(recipe(below=0.2, epochs=3, seed=1), examples, IDS)


def test_a_last_epoch_that_is_not_whole_is_cut() -> None:
    examples = long_tailed(50, 4)
    three, less = (plan_examples(recipe(order="shuffled", epochs=epochs), examples, IDS) for epochs in (3, 2.4))
    assert three.sizes == (50, 50, 50)
    assert less.sizes == (50, 50, 20)
    assert less.examples == three.examples[:120]


def test_steps_beyond_the_epochs_have_orders_of_their_own_too() -> None:
    examples = long_tailed(50, 4)
    changes = {"epochs": 2.0, "batch_size": 4, "accumulation": 2}
    short = plan_examples(recipe(order="shuffled", **changes), examples, IDS)
    long = plan_examples(recipe(order="shuffled", **changes, max_steps=40), examples, IDS)
    assert len(long.examples) >= 40 * 8 > len(short.examples)
    assert long.examples[:100] == short.examples
    orders = [[made.id for made in epoch] for epoch in epochs_of(long)]
    assert len({tuple(order) for order in orders}) == len(orders) >= 7
    few = plan_examples(recipe(order="shuffled", **changes, max_steps=3), examples, IDS)
    assert few.examples[:24] == short.examples[:24]


# ---- weights of sources ---------------------------------------------------------------------------------------


def test_weights_say_how_often_rows_are_seen() -> None:
    weights = np.array([0.5] * 40 + [1.0] * 30 + [2.25] * 20)
    seen = times_seen(weights, 4, 7)
    assert seen.sum(0).tolist() == [2] * 40 + [4] * 30 + [9] * 20
    assert set(seen[:, 40:70].ravel().tolist()) == {1}
    assert set(seen[:, 70:].ravel().tolist()) == {2, 3}
    # Half of the rows in each epoch, the other half in the next.
    assert 10 < seen[0, :40].sum() < 30
    assert (seen[0, :40] + seen[1, :40]).tolist() == [1] * 40


def test_the_chance_that_rounds_is_that_of_the_fraction() -> None:
    seen = times_seen(np.full(20_000, 1.3), 1, 5)
    assert abs(seen.sum() - 26_000) <= 1
    assert np.corrcoef(seen[0], np.arange(20_000))[0, 1] == pytest.approx(0, abs=0.03)
    few = [times_seen(np.full(3, 1.3), 1, seed).mean() for seed in range(1500)]
    assert np.mean(few) == pytest.approx(1.3, abs=0.02)


def test_whole_weights_are_met_in_every_epoch_whatever_the_chance() -> None:
    for seed in range(200):
        assert (times_seen(np.full(7, 3.0), 5, seed) == 3).all()


def test_records_and_conversations_are_mixed_by_weight_and_a_conversation_is_never_repeated_for_rare_words() -> None:
    examples = [*long_tailed(30, 5), *(conversation(f"talk {n}") for n in range(10))]
    plan = plan_examples(recipe(below=0.5, epochs=2), examples, IDS, [1.0] * 30 + [0.5] * 10)
    talks = Counter(made.id for made in plan.examples if made.id.startswith("talk"))
    assert set(talks.values()) == {1}
    assert len(talks) == 10
    assert len(plan.examples) > 2 * 30 + 10


def test_weights_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="no row"):
        plan_examples(recipe(epochs=1), [conversation("a")], IDS, [1e-6])


# ---- the order of drugs ---------------------------------------------------------------------------------------


def test_each_copy_has_a_drug_order_of_its_own_and_is_otherwise_the_same() -> None:
    drugs = LABELS[:6]
    examples = [example("a", drugs), example("b", drugs[:1]), example("c", ()), conversation("d")]
    plan = plan_examples(recipe(order="shuffled", epochs=20), examples, IDS)
    orders = set()
    for made in plan.examples:
        source = examples["abcd".index(made.id)]
        assert made.completion_mask == source.completion_mask
        if made.id != "a":
            assert made.input_ids == source.input_ids
            continue
        found = answer_of(made)
        # Exactly the ids that the same record written in this order has.
        assert made.input_ids == example("a", found.drugs).input_ids
        assert sorted(found.drugs) == sorted(drugs)
        orders.add(found.drugs)
    assert len(orders) >= 18
    assert len({order[0] for order in orders}) == 6


# ---- with packing and by length -------------------------------------------------------------------------------


def test_packed_rows_are_left_to_the_trainer_to_draw() -> None:
    assert plan_examples(recipe(order="shuffled", packing=True, epochs=1), long_tailed(4, 6), IDS).shuffle


def test_examples_of_like_length_stand_in_one_batch() -> None:
    rng = np.random.default_rng(8)
    lengths = rng.integers(1, 2000, 1603)
    rows = by_length(np.arange(1603), lengths, 4, rng)
    assert sorted(rows.tolist()) == list(range(1603))
    apart = [np.ptp(lengths[rows[at : at + 4]]) for at in range(0, 1600, 4)]
    assert np.mean(apart) < 100
    assert len({lengths[rows[at]] > 1000 for at in range(0, 40, 4)}) == 2


def test_group_by_length_groups_within_each_epoch() -> None:
    examples = [example(str(n), LABELS[:1], prompt="好" * (n % 37 + 1)) for n in range(120)]
    plan = plan_examples(recipe(order="shuffled", group_by_length=True, batch_size=4, epochs=2), examples, IDS)
    for epoch in epochs_of(plan):
        assert len({made.id for made in epoch}) == 120
        batches = [[len(made.input_ids) for made in epoch[at : at + 4]] for at in range(0, 120, 4)]
        assert np.mean([max(batch) - min(batch) for batch in batches]) < 5
