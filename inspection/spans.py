"""Spans of a record's text that speak for a drug: its name or brand, words of a diagnosis that it is for, findings of one.

    reader = Reader(load_indications())
    for mention in reader.read(record): ...

A mention has the coordinates of `inspection.evidence`: section, start and end are characters of the record's own field. Names
are those of the lexicon and of diagnoses.tsv, the longest first; findings are the few of `FINDINGS`. Whether a mention is
denied, doubted or of a relative is told from its clause alone, by the plainest words. Knows no model: that a word stands in
the text does not mean that the model has used it (`inspection.counterfactual`).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from yaofang.data.records import Record
from yaofang.vocab.indications import Indications, load_indications
from yaofang.vocab.lexicon import load_lexicon

TEXTS: Mapping[str, Callable[[Record], str]] = {
    "主诉": lambda record: record.chief_complaint,
    "现病史": lambda record: record.present_illness,
    "既往史": lambda record: record.past_history,
    "入院情况": lambda record: record.admission,
    "诊疗过程描述": lambda record: record.course,
}
"""Sections that are text, in the order of the prompt."""
Kind = Literal["drug", "finding", "diagnosis"]
KINDS: tuple[Kind, ...] = ("drug", "finding", "diagnosis")
"""What tells most comes first."""
SHORTEST_DRUG = 3
"""Characters of a drug's spelling: the brands of two (四神, 利比) are found inside other words."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A span that names something."""

    kind: Kind
    section: str
    start: int
    end: int
    text: str
    """As it is written."""
    names: tuple[str, ...]
    """The generic; or the diagnoses of the table that it names or is a finding of."""
    denied: bool = False
    """Denied, doubted, of a relative, or of a drug that was stopped or not borne: it supports nothing."""
    note: str = ""
    """What a finding is, with its threshold and source."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A value or a sign by which a clinician would know a diagnosis."""

    name: str
    pattern: str
    """In text after NFKC in capitals. A group `value` is compared with `least` and `most`; without one the words are enough."""
    diagnoses: tuple[str, ...]
    """Of diagnoses.tsv."""
    source: str
    least: float = float("-inf")
    most: float = float("inf")

    @property
    def note(self) -> str:
        """`HbA1c ≥ 6.5（source）`."""
        low = f" ≥ {self.least:g}" if self.least > float("-inf") else ""
        return f"{self.name}{low}{f' ≤ {self.most:g}' if self.most < float('inf') else ''}（{self.source}）"


_TO = r"[^\d，。；、,;\n]{0,8}"
_VALUE = r"(?P<value>\d+(?:\.\d+)?)"
_DIABETES = ("2型糖尿病", "1型糖尿病", "糖尿病")
_LIPIDS = ("高脂血症",)
_LIPID_SOURCE = "中国血脂管理指南（2023年）：边缘升高"
_DIABETES_SOURCE = "中国糖尿病防治指南（2024版）：诊断切点"
_AIM = re.compile(r"目标|控制[在于至]")
_BELOW = re.compile(r"[^,。;\n]{0,8}(?:以下|以内)")
_CHANGE = re.compile(r"(?:下降|上升|升高|降低)了?\d")
_POTASSIUM = rf"(?:血钾|(?<!尿)钾离子|K\+|(?<![酸化尿])钾){_TO}{_VALUE}(?=MMOL)"
FINDINGS = (
    Finding("HbA1c %", rf"(?:HBA1C|糖化血红蛋白(?:A1C)?)(?:\(HBA1C\))?{_TO}{_VALUE}(?=%)", _DIABETES, _DIABETES_SOURCE, 6.5),
    Finding(
        "空腹血糖 mmol/L", rf"空腹(?:血糖|葡萄糖){_TO}{_VALUE}(?:-\d+(?:\.\d+)?)?(?=MMOL)", _DIABETES, _DIABETES_SOURCE, 7.0
    ),
    Finding(
        "餐后2小时或随机血糖 mmol/L",
        rf"(?:餐后(?:2|两)?(?:小时|H)?|随机)血糖{_TO}{_VALUE}(?:-\d+(?:\.\d+)?)?(?=MMOL)",
        _DIABETES,
        _DIABETES_SOURCE,
        11.1,
    ),
    Finding(
        "低密度脂蛋白胆固醇 mmol/L",
        rf"(?:(?<!极)(?<!小而密)低密度脂蛋白(?:胆固醇)?|(?<![A-Z])LDL(?:-?C)?){_TO}{_VALUE}(?=MMOL)",
        (*_LIPIDS, "高胆固醇血症"),
        _LIPID_SOURCE,
        3.4,
    ),
    Finding("总胆固醇 mmol/L", rf"(?:总胆固醇|TC){_TO}{_VALUE}(?=MMOL)", (*_LIPIDS, "高胆固醇血症"), _LIPID_SOURCE, 5.2),
    Finding("甘油三酯 mmol/L", rf"(?:甘油三酯|TG){_TO}{_VALUE}(?=MMOL)", (*_LIPIDS, "高甘油三酯血症"), _LIPID_SOURCE, 1.7),
    Finding(
        "血尿酸 μmol/L",
        rf"(?<!尿)(?:血?尿酸|UA){_TO}{_VALUE}(?=[ΜU]MOL)",
        ("高尿酸血症",),
        "中国高尿酸血症与痛风诊疗指南",
        420.01,
    ),
    Finding("收缩压 mmHg", rf"(?:血压|BP){_TO}{_VALUE}/\d{{2,3}}(?!\d)", ("高血压",), "中国高血压防治指南（2024年）", 140),
    Finding(
        "血钾 mmol/L",
        _POTASSIUM,
        ("低钾血症",),
        "检验参考区间",
        most=3.49,
    ),
    Finding("血钾 mmol/L", _POTASSIUM, ("高钾血症",), "检验参考区间", 5.51),
    Finding(
        "血红蛋白 g/L",
        rf"(?<!糖化)(?:血红蛋白|HGB|HB){_TO}{_VALUE}(?=G/L)",
        ("贫血",),
        "中国成人贫血诊断标准（女）",
        most=109.9,
    ),
    Finding(
        "同型半胱氨酸 μmol/L",
        rf"(?:同型半胱氨酸|HCY){_TO}{_VALUE}(?=[ΜU]MOL)",
        ("高同型半胱氨酸血症",),
        "高同型半胱氨酸血症诊疗专家共识",
        15,
    ),
    Finding("eGFR mL/min/1.73m²", rf"(?:肾小球滤过率|E?GFR){_TO}{_VALUE}(?=ML)", ("慢性肾脏病",), "KDIGO 2024", most=59.9),
    Finding("心律绝对不齐", r"心律绝对不齐|脉搏短绌|房颤心律", ("心房颤动",), "体征"),
    Finding(
        "周围神经检查异常",
        r"(?:痛温觉|针刺痛觉|振动觉|震动觉|痛觉|温度觉)减[退弱]|振动感觉阈值升高|10G尼龙丝试验阳性",
        ("糖尿病周围神经病变",),
        "体征",
    ),
)
"""Few on purpose: each is written with its threshold and where that stands. What is not here is not looked for."""

_CLAUSE_END = re.compile(r"[,。;!?\n]")
_DENIED_BEFORE = re.compile(r"否认|(?<!有)无(?!明显诱因|诱因)|未见|未发现|未闻|未触及|未患|排除|除外|不支持|预防")
_RELATIVE = re.compile(r"父亲|母亲|父母|其父|其母|兄|姐|弟|妹|家族|祖父|祖母|子女|儿子|女儿")
_DENIED_AFTER = re.compile(r"^[^,。;、]{0,6}(?:待排|待查|除外|\?|家族史|可能|阴性|\(-\))")
_NOT_TAKEN = re.compile(r"过敏|皮试|否认|停药|停用|停服|未服|未用|未应用")
_AMOUNT = r"(?:\([^()]{0,12}\))?[:=]?\s*[<>]?\d+(?:\.\d+)?\s*(?:MMOL|[ΜU]MOL|NMOL|PMOL|G/L|NG/|MG/[DL]|IU/|M?IU/L|U/L)"
_MEASURED = re.compile(_AMOUNT)
_NO_DRUG = re.compile(rf"三酯|抵抗|释放|分泌|样生长|原|抗体|受体|水平|功能|自身|测定|试验|耐量|缺乏|{_AMOUNT}")
"""What follows a name that is measured or meant otherwise: 甘油三酯, 胰岛素抵抗, 叶酸 12 ng/mL."""
_BODY = frozenset(("白蛋白", "葡萄糖", "尿素", "胆固醇"))
"""Spellings that in a record name what is measured in the blood, hardly ever what is given."""


class Reader:
    """Finds what `Mention` holds. Building it reads the tables; reading a record takes milliseconds."""

    def __init__(self, tables: Indications | None = None) -> None:
        self._drugs = _drug_names()
        self._diagnoses = _by_start(_wordings(tables or load_indications()))
        self._findings = [(finding, re.compile(finding.pattern)) for finding in FINDINGS]

    def read(self, record: Record) -> tuple[Mention, ...]:
        """Every mention, section by section in the order of the prompt, in each by place."""
        found: list[Mention] = []
        for section, text_of in TEXTS.items():
            if text := text_of(record):
                found += sorted(self._of(section, text), key=lambda one: (one.start, one.end))
        return tuple(found)

    def _of(self, section: str, written: str) -> Iterator[Mention]:
        plain, places = folded(written)
        ends = [found.start() for found in _CLAUSE_END.finditer(plain)]

        def clauses(at: int) -> tuple[int, int]:
            place = bisect_left(ends, at)
            return (ends[place - 1] + 1 if place else 0, ends[place] if place < len(ends) else len(plain))

        def mention(kind: Kind, start: int, end: int, names: tuple[str, ...], denied: bool, note: str = "") -> Mention:
            first, last = places[start], places[end - 1] + 1
            return Mention(kind, section, first, last, written[first:last], names, denied, note)

        for start, end, generics in _found(plain, self._drugs):
            if len(generics) == 1 and plain[start:end] not in _BODY and not _NO_DRUG.match(plain[end : end + 30]):
                denied = bool(_NOT_TAKEN.search(plain[slice(*clauses(start))]))
                yield mention("drug", start, end, generics, denied)
        for start, end, names in _found(plain, self._diagnoses):
            if not _MEASURED.match(plain[end : end + 30]):
                yield mention("diagnosis", start, end, names, _is_denied(plain, clauses(start)[0], start, end))
        for finding, pattern in self._findings:
            for hit in pattern.finditer(plain):
                value = float(hit["value"]) if "value" in pattern.groupindex else None
                if value is not None and (not finding.least <= value <= finding.most or _is_no_value(plain, hit, finding)):
                    continue
                clause = clauses(hit.start())[0]
                denied = bool(_RELATIVE.search(plain[clause : hit.start()]))
                denied = denied or (value is None and _is_denied(plain, clause, hit.start(), hit.end()))
                yield mention("finding", hit.start(), hit.end(), finding.diagnoses, denied, finding.note)


def _is_no_value(plain: str, hit: re.Match[str], finding: Finding) -> bool:
    """Whether a number is an aim (目标<7.0%), a bound on the wrong side or a change (下降20g/L), not what was measured."""
    if _CHANGE.search(hit[0]) or _AIM.search(plain[max(0, hit.start() - 4) : hit.end()]):
        return True
    if finding.least > float("-inf") and (re.search("[<≤]", hit[0]) or _BELOW.match(plain[hit.end() :])):
        return True
    return finding.most < float("inf") and bool(re.search("[>≥]", hit[0]))


def _is_denied(plain: str, clause: int, start: int, end: int) -> bool:
    before = plain[clause:start]
    return bool(_DENIED_BEFORE.search(before) or _RELATIVE.search(before) or _DENIED_AFTER.match(plain[end : end + 12]))


def folded(text: str) -> tuple[str, list[int]]:
    """The text after NFKC in capitals, and for each of its characters the place in `text` that it comes from."""
    pairs = [(character, place) for place, written in enumerate(text) for character in _folded(written)]
    return "".join(character for character, _ in pairs), [place for _, place in pairs]


@cache
def _folded(character: str) -> str:
    return unicodedata.normalize("NFKC", character).upper()


def _found(plain: str, names: Mapping[str, list[tuple[str, tuple[str, ...]]]]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """(start, end, meanings) of the names in a text, the longest at each place; they do not overlap."""
    place = 0
    while place < len(plain) - 1:
        near = names.get(plain[place : place + 2], ())
        hit = next((one for one in near if plain.startswith(one[0], place) and _stands_alone(plain, place, one[0])), None)
        if hit:
            yield place, place + len(hit[0]), hit[1]
        place += len(hit[0]) if hit else 1


def _stands_alone(plain: str, place: int, name: str) -> bool:
    """Latin letters are no part of a longer word: HF is not found in HFREF."""
    after = plain[place + len(name) : place + len(name) + 1]
    before = plain[place - 1 : place] if place else ""
    return not (_is_latin(name[0]) and _is_latin(before)) and not (_is_latin(name[-1]) and _is_latin(after))


def _is_latin(character: str) -> bool:
    return "A" <= character <= "Z"


@cache
def _drug_names() -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Spellings of the lexicon -> generics. One of several generics is found, so that no part of it is taken for another."""
    lexicon = load_lexicon()
    spelt = {_whole(spelling): tuple(sorted(generics)) for spelling, generics in lexicon.spellings.items()}
    own = {_whole(generic): (generic,) for generic in lexicon.entries if len(generic) > 1}
    return _by_start({name: generics for name, generics in spelt.items() if len(name) >= SHORTEST_DRUG} | own)


def _wordings(tables: Indications) -> dict[str, tuple[str, ...]]:
    """Ways in which a text may write a diagnosis of the table -> its name."""
    found: dict[str, tuple[str, ...]] = {}
    for one in tables.diagnoses.values():
        for written in (one.name, *one.synonyms):
            for wording in _types(_whole(written)):
                found.setdefault(wording, (one.name,))
    return found


def _types(name: str) -> Iterable[str]:
    """Types of diabetes are written with Arabic, Roman and Chinese numbers."""
    yield name
    for arabic, others in (("1型", ("I型", "一型")), ("2型", ("II型", "二型"))):
        yield from (name.replace(arabic, other) for other in others if arabic in name)


def _whole(name: str) -> str:
    return folded(name)[0]


def _by_start(names: Mapping[str, tuple[str, ...]]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """First two characters -> (name, meanings), the longest name first."""
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for name in sorted(names, key=lambda one: (-len(one), one)):
        if len(name) > 1:
            found.setdefault(name[:2], []).append((name, names[name]))
    return found
