"""F1 of diagnoses: exact, and after what is only writing has been taken off.

Knows names of diagnoses, and no tables: two names that mean the same disease by other words stay two.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache

from yaofang.data.answer import clean_diagnosis
from yaofang.eval.metrics import f1

_REMARK = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|【[^【】]*】|〔[^〔〕]*〕")
_RISK = re.compile(r"[,，]?(?:极|很)?高危组?$|[,，]?[中低]危组?$")
_MARKS = re.compile(r"[\s,，。:;—_、()\[\]【】〔〕]|(?<!\d)[-./]|[-./](?!\d)")
_GRADE = re.compile(
    r"(?:(?<![A-Z])|(?<=NYHA)|(?<=KILLIP))(VIII|VII|VI|IV|IX|V|X|III|II|I)(?=型|级|期|度|°|类|[A-C](?:级|期|型)|-|~|$)"
)
_CHINESE = re.compile(r"([一二三四五六七八九])(?=型糖尿病|[级期度])")
_ROMAN = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10}
_DIGITS = "一二三四五六七八九"


def exact_f1(gold: Collection[str], predicted: Collection[str]) -> float:
    """2PR/(P+R) of one record's names as sets, after the answer's own rewriting of separators (`data.answer`)."""
    return f1({clean_diagnosis(name) for name in gold}, {clean_diagnosis(name) for name in predicted})


def normalised_f1(gold: Collection[str], predicted: Collection[str]) -> float:
    """The same of the names' `plain` forms."""
    return f1({plain(name) for name in gold}, {plain(name) for name in predicted})


@lru_cache(maxsize=50_000)
def plain(name: str) -> str:
    """A name without what is only writing.

    Full width becomes half width (NFKC); remarks in brackets and a risk group at the end (极高危) go, blanks too, and marks
    that do not stand between digits; Roman and Chinese numbers of types, stages and degrees become Arabic (II型, 二型 and Ⅱ型
    are 2型). A name that is nothing but a remark keeps it.
    """
    text = unicodedata.normalize("NFKC", name).upper()
    while (bare := _REMARK.sub("", text)) != text and bare.strip():
        text = bare
    text = _GRADE.sub(lambda found: str(_ROMAN[found[1]]), re.sub(r"\s", "", text))
    text = _CHINESE.sub(lambda found: str(_DIGITS.index(found[1]) + 1), text)
    return _MARKS.sub("", _RISK.sub("", text) or text)
