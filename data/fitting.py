"""Fitting the parts of a prompt to a token budget: what is shortened, where, and how much was lost.

Knows texts and a function that counts tokens; does not know what the parts mean or which tokenizer counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from yaofang.data.recommendation import Cut
from yaofang.vocab.errors import InputError

ELLIPSIS = "…"
LONG = 2
"""Characters a token that a Chinese text hardly reaches."""
Count = Callable[[str], int]
Tokens = Callable[[Sequence[int]], int]
"""Tokens of the joined text with so many characters of each part."""


@dataclass(frozen=True, slots=True)
class Part:
    """A named text of the prompt and how it may be shortened."""

    name: str
    text: str
    shorten: Literal["middle", "tail", "never"] = "never"
    """Where text is taken from: its middle, its tail, or nowhere."""
    turn: int = 0
    """Parts of a lower turn are shortened first."""
    floor: int = 0
    """Characters that stay until every part is at its floor; after that parts go whole, in the same order."""

    def kept(self, characters: int) -> str:
        """The text with so many of its characters and `…` where some went; empty for none."""
        if characters >= len(self.text) or not characters:
            return self.text[:characters]
        head = characters if self.shorten == "tail" else (characters + 1) // 2
        tail = characters - head
        return self.text[:head] + ELLIPSIS + self.text[len(self.text) - tail :]


def joined(parts: Sequence[Part], kept: Sequence[int]) -> str:
    """The prompt's text: one paragraph a part under its name, with so many characters of each; empty parts left out."""
    texts = [(part.name, part.kept(size)) for part, size in zip(parts, kept, strict=True)]
    return "\n".join(f"{name}：{text}" for name, text in texts if text)


def fit(parts: Sequence[Part], budget: int, count: Count) -> tuple[str, tuple[Cut, ...]]:
    """The joined text of at most `budget` tokens, by `count` of the whole, and what was cut from each part.

    Takes about 30 calls of `count` at most, one if everything plainly fits; most are of a single paragraph. Where the
    paragraphs' tokens do not add up to the whole's (a tokenizer that joins across lines), each trial is counted whole too.
    Raises InputError if the parts that are never shortened do not fit.
    """
    whole = [len(part.text) for part in parts]
    by_paragraph = _ByParagraph(parts, count)

    def of_whole(kept: Sequence[int]) -> int:
        return count(joined(parts, kept))

    kept: list[int] | None = whole
    # What looks much too long is counted by paragraphs at once, as they will be needed. A joint may save a token, no more.
    long = sum(whole) > LONG * budget and by_paragraph(whole) > budget + len(parts)
    if long or of_whole(whole) > budget:
        kept = _shortened(parts, whole, budget, by_paragraph)
        if kept is None or of_whole(kept) != by_paragraph(kept):
            kept = _shortened(parts, whole, budget, of_whole)
    if kept is None:
        raise _too_long(parts, [0 if part.shorten != "never" else len(part.text) for part in parts], budget, count)
    cuts = [
        Cut(part.name, max(1, by_paragraph.of(i, len(part.text)) - (by_paragraph.of(i, size) or count(f"{part.name}：\n"))))
        for i, (part, size) in enumerate(zip(parts, kept, strict=True))
        if size < len(part.text)
    ]
    return joined(parts, kept), tuple(cuts)


class _ByParagraph:
    """Tokens of the joined text as the sum over its paragraphs, each counted once; those never shortened are one."""

    def __init__(self, parts: Sequence[Part], count: Count) -> None:
        self._parts, self._count = parts, count
        self._known: dict[tuple[int, ...], int] = {}
        self._fixed = tuple(i for i, part in enumerate(parts) if part.shorten == "never" and part.text)
        self._others = [i for i, part in enumerate(parts) if part.shorten != "never"]

    def __call__(self, kept: Sequence[int]) -> int:
        """Tokens, with so many characters of each part."""
        fixed = self._tokens(self._fixed, [kept[i] for i in self._fixed])
        return fixed + sum(self.of(i, kept[i]) for i in self._others)

    def of(self, part: int, kept: int) -> int:
        """Tokens of one part's paragraph, with its name, where so many of its characters are kept."""
        return self._tokens((part,), [kept]) if kept else 0

    def _tokens(self, which: tuple[int, ...], sizes: Sequence[int]) -> int:
        key = (*which, *sizes)
        if which and key not in self._known:
            # With its line break, which a tokenizer may join with a full stop before it.
            end = "\n" if any(part.text for part in self._parts[which[-1] + 1 :]) else ""
            self._known[key] = self._count(joined([self._parts[i] for i in which], sizes) + end)
        return self._known[key] if which else 0


def _shortened(parts: Sequence[Part], whole: Sequence[int], budget: int, tokens: Tokens) -> list[int] | None:
    """Characters to keep of each part: down to the floors in turn, then down to nothing in turn, as far as needed.

    None if not even that is enough.
    """
    turns = sorted((i for i, part in enumerate(parts) if part.shorten != "never"), key=lambda i: parts[i].turn)
    stages = [(-1, list(whole))]
    for i, lowest in [(i, parts[i].floor) for i in turns] + [(i, 0) for i in turns]:
        if stages[-1][1][i] > lowest:
            stages.append((i, [lowest if at == i else size for at, size in enumerate(stages[-1][1])]))

    def fits(stage: int) -> bool:
        return tokens(stages[stage][1]) <= budget

    if not fits(len(stages) - 1):
        return None
    # Each stage is shorter than the one before; the whole, stage 0, is known not to fit.
    first = bisect_left(range(len(stages)), True, lo=1, hi=len(stages) - 1, key=fits)
    i, kept = stages[first]
    return [*kept[:i], _most(kept, i, stages[first - 1][1][i], budget, tokens), *kept[i + 1 :]]


def _most(kept: Sequence[int], i: int, too_many: int, budget: int, tokens: Tokens) -> int:
    """The most characters of part `i`, from `kept[i]`, which fits, up to `too_many`, which does not.

    Tokens grow almost evenly with characters, so each trial is taken where a straight line meets the budget; after two such
    trials on one side the middle is taken.
    """
    trial = list(kept)

    def at(characters: int) -> int:
        trial[i] = characters
        return tokens(trial)

    low, high, one_side = (kept[i], at(kept[i])), (too_many, at(too_many)), 0
    while high[0] - low[0] > 1:
        gap, rise = high[0] - low[0], max(1, high[1] - low[1])
        guess = gap // 2 if abs(one_side) > 1 else gap * (budget - low[1] + (one_side < 0)) // rise
        middle = low[0] + min(max(guess, 1), gap - 1)
        found = at(middle)
        if found <= budget:
            low, one_side = (middle, found), max(one_side, 0) + 1
        else:
            high, one_side = (middle, found), min(one_side, 0) - 1
    return low[0]


def _too_long(parts: Sequence[Part], kept: Sequence[int], budget: int, count: Count) -> InputError:
    names = [part.name for part, size in zip(parts, kept, strict=True) if size]
    longest = max((part for part in parts if part.name in names), key=lambda part: len(part.text), default=None)
    tokens = count(joined(parts, kept))
    problem = f"the part that is never cut ({'、'.join(names)}) takes {tokens} tokens, {budget} are left for it"
    way_out = "Shorten it in this record, or use a model with a longer context."
    return InputError(problem, field=longest.name if longest else None, way_out=way_out)
