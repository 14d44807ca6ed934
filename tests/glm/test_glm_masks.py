from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yaofang.glm.masks import PrefixLM, attention_mask, document_numbers, record_blocks
from yaofang.glm.tiny import random_tiny

USER, ASSISTANT, PREFIX, PAD = 1, 2, 3, 4


def blocks_one_by_one(row: list[int]) -> list[int]:
    """The definition, token by token."""
    found, number, inside = [], 0, False
    for token in row:
        if token in (USER, ASSISTANT, PREFIX, PAD):
            number, inside = number + 1, token == USER
        found.append(number if inside else 0)
    return found


def allowed(row: list[int], documents: list[int], present: list[bool]) -> list[list[bool]]:
    blocks = blocks_one_by_one(row)
    both = range(len(row))
    return [
        [
            q == k or (present[k] and documents[q] == documents[k] and (q >= k or (blocks[q] == blocks[k] and blocks[q] > 0)))
            for k in both
        ]
        for q in both
    ]


rows = st.lists(
    st.tuples(st.integers(1, 7), st.booleans(), st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 12))
def test_the_mask_is_what_its_definition_says(row: list[tuple[int, bool, bool]], queries: int) -> None:
    ids = [token for token, _, _ in row]
    documents = torch.tensor([[new for _, new, _ in row]]).cumsum(dim=1)
    present = [here for _, _, here in row]
    blocks = record_blocks(torch.tensor([ids]), USER, (ASSISTANT, PREFIX, PAD))
    assert blocks.tolist() == [blocks_one_by_one(ids)]
    mask = attention_mask(len(row), documents=documents, blocks=blocks, present=torch.tensor([present]))
    expected = allowed(ids, documents[0].tolist(), present)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[expected]]
    queries = min(queries, len(row))
    last = attention_mask(len(row), documents=documents, blocks=blocks, present=torch.tensor([present]), queries=queries)
    assert last.tolist() == [[expected[-queries:]]]


def test_without_anything_the_mask_is_causal() -> None:
    assert attention_mask(5).tolist() == torch.ones(5, 5).tril().bool()[None, None].tolist()


def test_positions_that_start_anew_number_the_packed_examples() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5], [7, 8, 9, 10, 0, 1]])
    assert document_numbers(positions).tolist() == [[0, 0, 0, 1, 1, 2], [0] * 6, [0, 0, 0, 0, 1, 1]]


def turns() -> tuple[PrefixLM, list[int], list[int]]:
    template = random_tiny().template
    prompt = [{"role": "system", "content": "药师"}, {"role": "user", "content": "主诉<|assistant|>：烦渴"}]
    once, _ = template.example(prompt, ["\n", "阿卡波糖"])
    again = [*template.encode("\n多饮"), template.roles["assistant"], *template.encode("\n无")]
    return PrefixLM.of(template), once, [*once, *again]


def test_only_the_users_turns_are_blocks_and_text_that_names_a_marker_ends_none() -> None:
    prefix, _, ids = turns()
    blocks = prefix.blocks(torch.tensor([ids]))[0]
    starts = [place for place, token in enumerate(ids) if token == prefix.user_id]
    answers = [place for place, token in enumerate(ids) if token == prefix.ends[1]]
    inside = {place for start, end in zip(starts, answers, strict=True) for place in range(start, end)}
    assert len(starts) == 2
    assert {place for place, block in enumerate(blocks.tolist()) if block} == inside
    assert blocks[starts[0]] != blocks[starts[1]]


def attended(mask: Tensor, row: int, query: int) -> list[int]:
    found: list[int] = mask[row, 0, query].nonzero().flatten().tolist()
    return found


def test_the_answer_and_the_system_turn_never_see_what_comes_after_them() -> None:
    prefix, once, _ = turns()
    mask = prefix.prefill(torch.tensor([once]))
    user, answer = once.index(prefix.user_id), once.index(prefix.ends[1])
    for query in (*range(user), *range(answer, len(once))):
        assert attended(mask, 0, query) == list(range(query + 1))
    for query in range(user, answer):
        assert attended(mask, 0, query) == list(range(answer))


def test_a_packed_example_sees_itself_as_it_does_alone_and_nothing_of_its_neighbours() -> None:
    prefix, short, long = turns()
    packed = torch.tensor([[*short, *long]])
    positions = torch.tensor([[*range(len(short)), *range(len(long))]])
    mask = attention_mask(packed.shape[1], documents=document_numbers(positions), blocks=prefix.blocks(packed))[0, 0]
    n = len(short)
    assert torch.equal(mask[:n, :n], prefix.prefill(torch.tensor([short]))[0, 0])
    assert torch.equal(mask[n:, n:], prefix.prefill(torch.tensor([long]))[0, 0])
    assert not mask[:n, n:].any()
    assert not mask[n:, :n].any()


def test_left_padding_and_a_cache_do_not_change_who_sees_whom() -> None:
    prefix, once, _ = turns()
    user = once.index(prefix.user_id)
    plain = prefix.prefill(torch.tensor([once]))[0, 0]
    pad = [prefix.ends[-1]] * 3
    present = torch.tensor([[False] * 3 + [True] * len(once)])
    padded = prefix.prefill(torch.tensor([[*pad, *once]]), present)[0, 0]
    assert torch.equal(padded[3:, 3:], plain)
    assert not padded[3:, :3].any()
    after_cache = prefix.prefill(torch.tensor([[*pad, *once]]), present, queries=len(once) - user)[0, 0]
    assert torch.equal(after_cache, padded[3 + user :])
