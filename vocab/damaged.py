"""Names with one character lost, doubled, exchanged or mistyped: which known name was meant, if only one can be.

A name one character away from two generics is ambiguous (X格列净). A repair that could turn one drug into another is not made:
a lost 左, 异 or 去 is part of the name, and a wrong character must sound like the right one, or stand in a long name that has
nothing like it beside it. Knows strings only; `matching` decides what a repaired name means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from pypinyin import Style, lazy_pinyin
from rapidfuzz import process
from rapidfuzz.distance import OSA

MODIFIERS = frozenset("左右异去顺氘伏双氯羟硝消溴氟碘艾恩复地甲乙丙丁戊五龙维片丸散膏丹酒")
"""Characters that make another thing of a name: 异维A酸, 左氨氯地平, 顺阿曲库铵, 甲状腺片. Their loss is never repaired."""
TELLING = frozenset("左右异去顺双氯羟硝消溴氟碘甲乙丙丁戊")
"""Of these, the ones that are seldom a typing error for something else: a name that holds one was meant to."""
ALIKE = frozenset(
    map(frozenset, ("丁汀", "担坦", "录氯", "戌戊", "幸辛", "乎平", "挫唑", "书韦", "苯笨", "末未", "夭天", "己已"))
)
"""Characters that are taken for each other by their shape."""
FAMILIES = ("单抗", "双抗", "司亭", "替尼", "疫苗", "菌素")
"""Endings before which a few characters tell one drug from another."""
LONG = 5
"""Characters of a name in which a wrong one is repaired whatever it sounds like, if no other name is within two edits."""
Spellings = Mapping[str, frozenset[str]]
Names = Mapping[int, tuple[str, ...]]


def by_length(names: Iterable[str]) -> dict[int, tuple[str, ...]]:
    """Names of three characters and more, by their length: within n edits lie only lengths that differ by n at most."""
    found: dict[int, list[str]] = {}
    for name in names:
        if len(name) > 2:
            found.setdefault(len(name), []).append(name)
    return {size: tuple(group) for size, group in found.items()}


def _near(name: str, names: Names, edits: int, limit: int) -> list[str]:
    return [
        found
        for size in range(len(name) - edits, len(name) + edits + 1)
        for found, _, _ in process.extract(name, names.get(size, ()), scorer=OSA.distance, score_cutoff=edits, limit=limit)
    ]


def repaired(name: str, spellings: Spellings, names: Names) -> tuple[str | None, tuple[str, ...]]:
    """The generic that a damaged `name` means, or None; and the generics within one edit of it.

    `names` are the keys of `spellings` to compare with (`by_length`). Lengths under 3 are never repaired.
    """
    if len(name) < 3:
        return None, ()
    near = _near(name, names, 1, 20)
    generics = sorted({generic for found in near for generic in spellings[found]})
    if len(generics) == 1 and any(_may_repair(name, found, spellings, names) for found in near):
        return generics[0], tuple(generics)
    return None, tuple(generics)


def _may_repair(name: str, meant: str, spellings: Spellings, names: Names) -> bool:
    if len(meant) == len(name) + 1:
        lost = _lost(name, meant)
        return lost not in MODIFIERS and not lost.isascii() and (len(name) > 3 or meant.startswith(lost))
    if len(meant) == len(name) - 1:
        return _doubled(name, meant)
    places = [place for place, (a, b) in enumerate(zip(name, meant, strict=True)) if a != b]
    if len(places) == 2:
        return len(name) > 3
    (place,) = places
    wrong, right = name[place], meant[place]
    if not ("\u4e00" <= wrong <= "\u9fff" and "\u4e00" <= right <= "\u9fff"):
        return False  # a digit or a letter tells one drug from another: 30R, B12
    if _sound(wrong) == _sound(right) or {wrong, right} in ALIKE:
        return True
    long = len(name) >= LONG and not meant.endswith(FAMILIES)
    return long and not {wrong, right} & TELLING and _alone(name, spellings[meant], spellings, names)


def _alone(name: str, generics: frozenset[str], spellings: Spellings, names: Names) -> bool:
    return all(spellings[found] <= generics for found in _near(name, names, 2, 40))


def _lost(name: str, meant: str) -> str:
    return next((b for a, b in zip(name, meant, strict=False) if a != b), meant[-1])


def _doubled(name: str, meant: str) -> bool:
    place = next((place for place, (a, b) in enumerate(zip(name, meant, strict=False)) if a != b), len(meant))
    return place > 0 and name[place] == name[place - 1]


@lru_cache(maxsize=4096)
def _sound(character: str) -> str:
    return str(lazy_pinyin(character, style=Style.NORMAL)[0])
