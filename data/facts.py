"""What a record says of the patient that decides whether a drug may be given: age, sex, eGFR, pregnancy, allergies, potassium.

Reads the Chinese wording of the sections by patterns, from the latest section to the oldest; knows negation, family
members and ranges. It knows no vocabulary and no rules (`vocab.patient` does). What it cannot read stays None, and past
diagnoses are never guessed from the history: only 出院诊断 counts. No text of a record leaves it but names of allergies.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from yaofang.data.records import Record
from yaofang.vocab.patient import PatientFacts

UMOL_PER_MG_DL = 88.4
"""Creatinine: µmol/L in one mg/dL."""


@dataclass(frozen=True, slots=True)
class Allergies:
    """What a text says the patient is allergic to, in its words."""

    drugs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Food, pollen, metals and the like: no drug, and never in PatientFacts."""


def facts_of(record: Record) -> PatientFacts:
    """The facts of one record, as far as its text tells them."""
    texts = [
        unicodedata.normalize("NFKC", text)
        for text in (record.course, record.admission, record.present_illness, record.past_history, record.chief_complaint)
    ]
    age, sex = _age(record.birth, record.visit), _sex(record.sex)
    return PatientFacts(
        age=age,
        sex=sex,
        egfr=_egfr(texts, age, sex),
        pregnant=_is_pregnant(record, texts, age, sex),
        allergies=allergies_of("。".join(reversed(texts))).drugs,
        diagnoses=record.diagnoses,
        potassium=_latest(texts, _potassium_in),
    )


def egfr_of(creatinine: float, age: float, sex: Literal["male", "female"]) -> float:
    """CKD-EPI 2021, without race: eGFR in mL/min/1.73 m² of an adult from serum creatinine in µmol/L.

    142 · min(Scr/κ, 1)^α · max(Scr/κ, 1)^-1.200 · 0.9938^age · (1.012 if female), Scr in mg/dL, κ 0.7 and α -0.241 in
    women, 0.9 and -0.302 in men. Source: Inker LA et al., N Engl J Med 2021;385:1737-1749.
    """
    kappa, alpha, factor = (0.7, -0.241, 1.012) if sex == "female" else (0.9, -0.302, 1.0)
    ratio = creatinine / UMOL_PER_MG_DL / kappa
    return float(142 * min(ratio, 1.0) ** alpha * max(ratio, 1.0) ** -1.2 * 0.9938**age * factor)


def allergies_of(text: str) -> Allergies:
    """The allergies of a text: drugs, and apart from them food and the rest. Denied ones and relatives' are left out."""
    found: dict[str, None] = {}
    for sentence in re.split(r"[。;!?\n]", unicodedata.normalize("NFKC", text)):
        if not _ALLERGY.search(sentence):
            continue
        header = _ALLERGY_HEADER.search(sentence)
        if header:
            found.update(dict.fromkeys(_listed(header[1])))
        for clause in (sentence[: header.start()] if header else sentence).split(","):
            found.update(dict.fromkeys(item for subject in _subjects(clause) for item in _items(subject)))
    others = tuple(item for item in found if _NO_DRUG.search(item))
    return Allergies(tuple(item for item in found if item not in others), others)


# Age and sex


def _age(birth: str | None, visit: str | None) -> float | None:
    """Years between two dates of at least year and month; None if one is missing or they make no sense."""
    born, seen = _month(birth), _month(visit)
    if born is None or seen is None or not 0 <= seen - born <= 125 * 12:
        return None
    return (seen - born) / 12


def _month(date: str | None) -> int | None:
    found = re.match(r"\s*(\d{4})\s*[-/.年]?\s*(\d{1,2})?", date or "")
    if not found:
        return None
    month = int(found[2] or 7)
    return int(found[1]) * 12 + month - 1 if 1 <= month <= 12 else None


def _sex(text: str | None) -> Literal["male", "female"] | None:
    name = (text or "").strip().casefold()
    if name.startswith(("男", "male")) or name == "m":
        return "male"
    return "female" if name.startswith(("女", "female")) or name == "f" else None


# Laboratory values

_AMOUNT = r"\d+(?:\.\d+)?"
_LEAD = r"[\s(:=≈约为是仅示提测得值算波动于在至降低升高偏下由从了到]{0,10}"
_ARROW = r"(?:下降至|降低至|升高至|上升至|降至|升至|降到|升到|降为|升为|→|->|-->)"
_EGFR_UNIT = r"ml"
_CREATININE_UNIT = r"(?:[uμ]\s*mol|微摩尔?|mg\s*/\s*dl|mmol|mg|g)"
_POTASSIUM_UNIT = r"(?:mmol|meq)"


def _measured(name: str, unit: str) -> re.Pattern[str]:
    """A name, then a value or a range, or two values with an arrow between; the unit may be missing."""
    return re.compile(
        rf"(?P<name>{name})(?:\([^()]{{0,20}}\))?{_LEAD}(?P<sign>[<>≤≥])?"
        rf"(?:{_AMOUNT}\s*(?:{unit}[^,。;、\d→]{{0,8}}(?:1\.73\s*m2?)?)?\s*{_ARROW}\s*)?"
        rf"(?P<low>{_AMOUNT})(?:\s*(?:-|~|—|–|至)\s*(?P<high>{_AMOUNT}))?\s*(?:(?P<unit>{unit})|(?=$|[\s,。;、)(↓↑偏]))",
        re.I,
    )


_EGFR = _measured(r"(?<![a-z])(?:e-?)?GFR(?:-?EPI)?|肾小球滤过率", _EGFR_UNIT)
_CREATININE = _measured(r"(?<![a-z/尿])(?:血清肌酐|血肌酐|肌酐|s-?cr|crea|cr)", _CREATININE_UNIT)
_POTASSIUM = _measured(r"(?<![a-z尿化酸坦补低高含排保])(?:血清钾|血钾|钾离子|钾|k\+|k)", _POTASSIUM_UNIT)
_ONE_KIDNEY = re.compile(r"[左右单患健][肾侧]?(?:肾)?(?:的|总)?$")
_ADVICE = re.compile(r"若|如果|一旦|[时者]\s*(?:应|需|须|停|禁|慎|减|可|$)")


def _egfr(texts: Iterable[str], age: float | None, sex: Literal["male", "female"] | None) -> float | None:
    """The eGFR of the latest section that states one or a creatinine; in one section the stated one counts."""
    for text in texts:
        stated = _last(_egfr_in(text))
        if stated is not None:
            return stated
        creatinine = _last(_creatinine_in(text))
        if creatinine is not None and age is not None and age >= 18 and sex:
            return egfr_of(creatinine, age, sex)
    return None


def _egfr_in(text: str) -> Iterator[float]:
    for found in _EGFR.finditer(text):
        is_gene = found["name"] == "EGFR" and not found["unit"]
        if (
            not is_gene
            and not _ONE_KIDNEY.search(text[max(0, found.start() - 5) : found.start()])
            and not _is_advice(text, found)
        ):
            yield from _within(_amount(found), 1, 300)


def _creatinine_in(text: str) -> Iterator[float]:
    """Serum creatinine in µmol/L. Without a unit it is taken for µmol/L where it can be nothing else."""
    for found in _CREATININE.finditer(text):
        unit = re.sub(r"\s", "", found["unit"] or "").casefold()
        if _is_advice(text, found) or "尿" in text[max(0, found.start() - 3) : found.start()]:
            continue
        if unit == "mg/dl":
            yield from _within(_amount(found) * UMOL_PER_MG_DL, 15, 3000)
        elif not unit or unit.startswith(("u", "μ", "微")):
            yield from _within(_amount(found), 15 if unit else 30, 3000)


def _potassium_in(text: str) -> Iterator[float]:
    for found in _POTASSIUM.finditer(text):
        is_named = found["name"].casefold() not in ("k", "钾")
        if (found["unit"] or is_named) and not _is_advice(text, found):
            yield from _within(_amount(found), 1.5, 10)


def _latest(texts: Iterable[str], values: Callable[[str], Iterator[float]]) -> float | None:
    """The last value of the first text that has one."""
    return next((value for text in texts if (value := _last(values(text))) is not None), None)


def _last(values: Iterable[float]) -> float | None:
    return next(reversed(list(values)), None)


def _amount(found: re.Match[str]) -> float:
    """The value; the middle of a range; just under or over a limit."""
    low = float(found["low"])
    if found["high"]:
        return (low + float(found["high"])) / 2
    return low * {"<": 0.99, ">": 1.01}.get(found["sign"] or "", 1.0)


def _within(value: float, low: float, high: float) -> Iterator[float]:
    if low <= value <= high:
        yield value


def _is_advice(text: str, found: re.Match[str]) -> bool:
    """Whether the clause speaks of a case that may come, not of a value that was measured."""
    before = re.split(r"[,。;、]", text[max(0, found.start() - 30) : found.start()])[-1]
    after = re.split(r"[,。;、]", text[found.end() : found.end() + 30])[0]
    return bool(_ADVICE.search(before + found[0] + after))


# Pregnancy

_PREGNANCY = re.compile(
    r"(?:孕|妊娠)\s*\d{1,2}\s*(?:\+\s*\d\s*)?(?:周|月|个月)|宫内[早中晚]?孕|(?<!抗)[早中晚]孕|[早中晚]期妊娠|妊娠[早中晚]期"
    r"|妊娠(?:期|合并|伴|状态)|怀孕\s*\d|(?:现|目前|已|正值|处于)(?:怀孕|妊娠|孕)|[为系]孕妇|子痫前期|[单双]胎妊娠"
)
_DIAGNOSED_PREGNANCY = re.compile(r"妊娠|孕(?!激素|酮|产)|子痫前期")
_NOT_NOW = re.compile(
    r"否认|无|未|非|排除|除外|既往|曾|年前|前次|上次|当时|计划|备孕|避孕|不孕|拟|准备|希望|如|若|一旦|建议|禁|慎"
    r"|女儿|儿媳|妻|母亲|其母|姐|妹|家族|异位|宫外|流产|引产|终止"
)
_OVER = re.compile(r"产后|分娩后|流产|引产|终止妊娠|异位妊娠|宫外孕|葡萄胎|不孕|避孕|妊娠纹|[?疑]|待排|除外|排除")
_NOW = re.compile(r"(?<![发出])现|目前|本次|此次|今日")
_DELIVERED = re.compile(
    r"行[^,。;]{0,10}(?:剖宫产|引产|清宫|人工流产|人流|终止妊娠)|顺产一|分娩一|娩出|产后\s*(?:第?\s*\d|出血)|自然流产|胎停|稽留流产|难免流产"
)


def _is_pregnant(record: Record, texts: list[str], age: float | None, sex: str | None) -> bool:
    """Whether the patient is with child when she leaves: by a diagnosis, or by words for it in the present sections."""
    if sex == "male" or (age is not None and not 10 <= age < 58):
        return False
    course, admission, present, _, complaint = texts
    if any(
        not re.search(r"拟|计划|建议|必要时|择期|既往|史", clause) for clause in _clauses(course) if _DELIVERED.search(clause)
    ):
        return False
    diagnosed = (unicodedata.normalize("NFKC", name) for name in record.diagnoses)
    if any(_DIAGNOSED_PREGNANCY.search(name) and not re.search("史|既往|" + _OVER.pattern, name) for name in diagnosed):
        return True
    return any(_tells_pregnancy(sentence) for text in (complaint, present, admission, course) for sentence in _sentences(text))


def _tells_pregnancy(sentence: str) -> bool:
    """Whether a sentence says that she is pregnant now. What it tells of years ago counts only after a word for now."""
    is_past = False
    for clause in _clauses(sentence):
        is_past = (is_past or bool(re.search(r"年前|既往|曾|(?:19|20)\d\d年", clause))) and not _NOW.search(clause)
        clause = re.sub(r"无明显诱因|无诱因", "", clause)
        found = _PREGNANCY.search(clause)
        if not found or is_past or _OVER.search(clause) or _NOT_NOW.search(clause[: found.start()]):
            continue
        if not re.match(r".{0,8}史", clause[found.end() :]):
            return True
    return False


def _sentences(text: str) -> list[str]:
    return re.split(r"[。;!\n]", text)


def _clauses(text: str) -> list[str]:
    return re.split(r"[,。;!\n]", text)


# Allergies

_ALLERGY_HEADER = re.compile(r"过敏史\s*:\s*(.+)$")
_ALLERGY = re.compile(r"过敏|皮试|皮肤试验|皮疹|荨麻疹|水肿")
"""One of these is in every sentence that the patterns below find anything in: most have none, and are passed over quickly."""
_ALLERGIC = re.compile(r"过敏(?!性(?!休克|皮疹|反应)|原|体质|源|科)")
_SKIN_TEST = re.compile(r"(.+?)(?:皮试|皮肤试验)[^,]{0,4}?(?:阳性|\(\+\)|\+)")
_REACTION = re.compile(
    r"(?:使用|应用|服用|口服|静滴|静点|静脉滴注|注射|输注|肌注|因)(.+?)(?:后|时|致|导致|引起).{0,8}?(?:皮疹|荨麻疹|喉头水肿|血管性水肿|过敏)"
)
_DENIED = re.compile(r"否认|无|未|非(?!甾|那|诺|布|洛|奈|索)|没有|不$|不会|阴性|排除")
_UNCLEAR = re.compile(r"[^,]{0,3}?(?:不详|不清|阴性|未诉|\(-\)|:\s*无|待排)")
_RELATIVE = re.compile(r"父亲|母亲|其父|其母|父母|兄|姐|弟|妹|子女|儿子|女儿|家族|爱人|配偶|丈夫|妻子")
_FILLER = re.compile(
    r"^(?:患者|既往史?|曾经?|有|对(?!乙酰|比剂|氨基)|自诉|自述|诉|明确|使用|应用|服用|口服|静滴|静点|静脉滴注|静脉注射|肌注"
    r"|注射|输注|为|其|除|存在|发现|史|因|年轻时|幼时|本人|平素|某些|多种|药物[:(]|食物[:(]|药物过敏|\d+\s*余?年前|[:(\s\d.])+"
)
_TAIL = re.compile(r"(?:曾?有|存在|可疑|可能|严重|轻度|明确|引起|后?出现|后|等|外|史|[):\s]|过敏(?:史|反应|性休克|性皮疹)?)+$")
_NO_ITEM = {
    "药物",
    "食物",
    "药品",
    "药",
    "其他",
    "其它",
    "任何",
    "接触物",
    "其他药物",
    "其它药物",
    "食品",
    "过敏",
    "特殊",
    "某种药物",
}
_NO_DRUG = re.compile(
    r"食物|食品|海鲜|海产|水产|虾|蟹|鱼(?!精蛋白|肝油|腥草)|贝类|芒果|菠萝|桃|水果|花生|坚果|鸡蛋|蛋类|^蛋$|牛奶|奶制品|乳制品|羊肉|牛肉"
    r"|小麦|大豆|黄豆|豆类|辣|花粉|柳絮|杨絮|尘|螨|霉菌|漆|金属|^镍|染发|化妆品|乳胶|橡胶|胶布|胶带|敷贴|紫外线|日光|阳光|^光$|冷空气|寒冷"
    r"|^酒|酒精|乙醇|动物毛|皮毛|^猫|^狗|蚊|蜂"
)


def _listed(text: str) -> list[str]:
    """The items after `过敏史：`, up to the end of the sentence; a part that denies or knows nothing has none."""
    parts = [part for part in text.split(",") if not _DENIED.search(part) and not _UNCLEAR.match(part)]
    return [item for part in parts if part.strip() not in ("-", "(-)") and not _RELATIVE.search(part) for item in _items(part)]


def _subjects(clause: str) -> Iterator[str]:
    """The words of a clause that name what the patient is allergic to."""
    if _RELATIVE.search(clause):
        return
    start = 0
    for found in _ALLERGIC.finditer(clause):
        subject = re.sub(r"无明显诱因", "", clause[start : found.start()])
        start = found.end()
        reaction = _REACTION.search(subject + "过敏")
        if not _DENIED.search(subject) and not _UNCLEAR.match(clause, found.end()):
            yield reaction[1] if reaction else subject
    for pattern in (_SKIN_TEST, _REACTION):
        found_one = pattern.search(clause)
        if found_one and not _ALLERGIC.search(clause) and not _DENIED.search(found_one[0].replace("无明显诱因", "")):
            yield found_one[1]


def _items(subject: str) -> list[str]:
    parts = re.split(r"[、/]|(?<=.)(?:以及|及|和|与|或)(?=.)", subject)
    items = (_TAIL.sub("", _FILLER.sub("", part.strip())).strip() for part in parts)
    return [item for item in items if item not in _NO_ITEM and (len(item) > 1 or item == "碘" or _NO_DRUG.search(item))]
