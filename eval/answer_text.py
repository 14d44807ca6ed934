"""The drugs that a text of another system prescribes: lists with or without header, numbers, doses, brackets, markdown, JSON.

Known names are looked for, each between words that can stand beside a name, and linked by `vocab.matching`, which never turns
one drug into another. Drugs that the text stops, avoids, replaces, or speaks of only as a case that may come are left out. An
answer of our own format is read by `data.answer`. Of drugs joined by 或 all are taken. Knows one text at a time, and no files.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from yaofang.data.answer import HEADER, parse
from yaofang.vocab.drugs import UNKNOWN, Vocabulary
from yaofang.vocab.lexicon import load_lexicon
from yaofang.vocab.matching import match, meaning
from yaofang.vocab.naming import clean, form_of, normalise
from yaofang.vocab.unlisted import is_no_drug

DRUG_KEYS = ("drug", "drugs", "prediction", "药品", "药名", "药物", "药品名称", "药物名称", "通用名")
"""Keys under which a table or an object names its drug."""

_STRONG = r"出院\s*(?:时)?\s*(?:带药|用药|药物|处方|医嘱用药)|带药(?:清单|列表|方案)?"
_WEAK = r"(?:推荐|建议|最终|长期)?(?:用药|药物|药品|处方|治疗)(?:方案|建议|清单|列表|推荐)?|预测(?:结果|药物)?|(?:最终)?答案"
_NOTE = r"(?![^\n:]{0,12}(?:注意|说明|依据|理由|分析|原因|指导|教育|前))"
_HEADS = tuple(
    re.compile(rf"(?:{words}){_NOTE}[^\n:。,、;0-9]{{0,14}}(?::|\n)\s*")
    for words in (_STRONG, rf"(?:^|(?<=[\n。,;#]))\s*(?:{_WEAK})")
)
_OTHER_MARKS = re.compile(r"[，。；;,：:|/+\s]|\d[.)]|等\W*$")
"""What stands in a list of one line that is not separated as our own answers are."""
_NONE = re.compile(
    r"^\W*(?:无|无特殊(?:药物|带药|用药)?|暂无|没有|无需(?:带药|用药)?|不需要?(?:带药|用药)|未带药|未开药|none|nil|\[\s*\])\W*$",
    re.I,
)
_THINKING = re.compile(r"<think>.*?(?:</think>|$)", re.S)
_MARKUP = re.compile(r"\*\*|__|`+(?:json|text|markdown)?|^\s*#+\s*|~~[^~\n]+~~|[✅☑✔💊]", re.M)
_CIRCLED = re.compile("[①-⑳]")
_BULLET = re.compile(r"^\s*(?:[-*•·●○◆▪–—]+|\(?\d{1,2}[.、)](?!\d)|[一二三四五六七八九十]{1,2}[、.])\s*")
_ENUMERATION = re.compile(r"(?:(?<=[\s,;。:、])|^)\(?\d{1,2}[.、)](?!\d)\s*")
_COMMA = re.compile(r",(?!(?<=\d,)\d{1,2}-)")
"""Not that of 2,5-二羟基苯磺酸钙."""
_ASIDE = "\ue000{}\ue001"
_ASIDES = re.compile("\ue000(\\d+)\ue001")

_STOP = re.compile(
    r"停(?!经|诊|留|搏)|禁用|禁忌|忌用|避免|慎用|不宜|不建议|不推荐|不主张|不应|不可|不能|不予|不用|不加用|不使用|不需|不必|不再|不耐受|勿|暂不|未[用予服]"
    r"|未使用|未给予|无需|毋需|过敏|取消|撤除|拒绝|[替取]代|代替|既往|曾|入院前|院外|住院期间|入院后|原(?:用|服|有)|排除|而非|而不是"
)
_GO = re.compile(r"改[用为予成服]|换[用为成]|替换为|更换为|调整为|加用|启用|给予|予以|继续|选用|恢复|代之以|并用|转为")
_CHANGE = re.compile(r"改[用为予成服]|换[用为成]|替换为|更换为|调整为|转为")
_STOPPED = re.compile(
    r"(?<![时者即及])停(?!经|诊|留|搏)|禁用|不用|不再|不宜|不建议|不推荐|暂不|过敏|撤除|取消|不耐受|不能耐受|不可用"
)
_STOPPED_ASIDE = re.compile(r"\W*(?:已|暂|现|目前|建议|拟|应|需)*停")
_IF = re.compile(
    r"若|如果|一旦|假如|倘若|如(?:出现|血|症|仍|未|需|效果|不|有必要)|可考虑|备选|替代方案"
    r"|必要时(?=[^,。;]{0,6}(?:加|用|联|改|换|予|使用|考虑))"
)
_OUT_HEAD = re.compile(
    r"停|禁|避免|慎用|不推荐|不建议|过敏|入院前|既往|住院期间|注意|监测|随访|饮食|生活|健康|说明|备注|复查|复诊|理由|依据|分析|诊断|检查|解释|相互作用"
    r"|原因|提示|提醒|风险|不良|声明|免责|教育|主诉|病史|总结|备选|替代|可选|考虑"
)
_OUT_KEY = re.compile(
    r"avoid|exclu|contra|stop|discontin|allerg|interact|warning|not_|admission|history|previous|non[-_ ]?(?:drug|medic)"
    r"|排除|不[用宜]|未选|非药",
    re.I,
)
_IN_HEAD = re.compile(r"药|处方|治疗|降[糖压脂尿]|调脂|抗|护|补|剂|方案|胃|钙|其他|内分泌|心血管|神经")
_PROSE = re.compile(
    r"请|注意|监测|定期|复查|复诊|医嘱|患者|根据|建议|以上|控制|治疗|用于|如有|不适|饮食|运动|随访|剂量|调整|情况|评估|避免|考虑|可能|需要|的|了|方案|改善"
    r"|预防|保护|服用|使用|应用|用法|用量|名称|药[品物名]$|类$|药$|降[糖压脂]|调脂|抗血小板|抗凝|疗程|频|途径|规格|备注|作用|指征|适应|目的|原因|说明|综上|因此|所以"
    r"|抱歉|无法|作为|模型|参考|具体|医生|医师|出院|入院|诊断|病史|血糖|血压|血脂|尿酸|症状|并发|营养|支持|对症|遵|咨询|门诊|低盐|低脂|戒烟|补充|进餐|餐"
    r"|早|晚|每|次$|日$|周$|个月|等$|以及|如下|包括|序号|编号|单位|剂型|给药|口服$|皮下|注射$|是否|没有|为|在|于|和|与|及|或|并|可$|长期|按|因为|特殊"
    r"|健康|教育"
)
_DOSED = re.compile(
    r"\d\s*(?:mg|g|ug|μg|ml|iu|u|单位|片|粒|支|袋|丸|滴|毫克|克)(?![a-z])|(?<![a-z])(?:qd|bid|tid|qn|po)(?![a-z])"
    r"|每[日天晚早周]|[一每]日",
    re.I,
)
_VERBS = (
    r"口服|服用|给予|予以|予|加用|加|继续|联合|联用|合用|使用|应用|选用|改用|改为|改予|换用|换为|换成|替换为|更换为|调整为|皮下注射|注射|静滴|外用|吸入|含服|启用|恢复|维持"
    r"|和|与|及|以及|或|如|例如|包括|包含|为|是|用|由|将|把|以|并|配合|推荐|建议|开具|带药|带|药物|长效|短效|基础|餐时|睡前|早|晚|早餐前|早餐后|晚餐前|每日|每晚|每天|每周|规律|按时"
    r"|长期|降[糖压脂]药?|调脂药?|抗血小板药?|抗凝药?|停用|停服|停|避免|禁用|慎用|不宜|暂停|替代|代替|取代|既往|后|则|可|其中|即|物|有|口|坚持|医嘱|序贯|辅以|同时|治疗"
)
_LEAD = re.compile(rf"(?:^|[^\w/-]|(?:^|[\s:,;、])-|_|\d\s*(?:mg|g|u|iu|ml|片|粒|支|袋|单位|次)|(?:{_VERBS}))$", re.I)
_FOLLOW = re.compile(
    r"$|[^\w/-]|\s*[-–—](?![a-z])|_|\d|\s*(?:q\.?d|b\.?i\.?d|t\.?i\.?d|q\.?n|qod|qw|po|ih|hs|prn|sc|iv|im)(?![a-z])"
    r"|和|与|及|或|以及|联合|联用|合用|加|并|治疗|控制|降|调|抗|抑|保护|改善|预防|用于|进行|继续|口服|皮下|静|每|一日|一次|早|晚|中|餐|饭|睡|空腹|随|长期|规律|维持|减|增"
    r"|剂量|等|各|为|以|可|作|后|即|停|禁|改|换|替|预[混填]|笔|特充|已|予|暂|因|过敏|服|嚼|含|外用|吸|必要|半|两|一|替|续|的|按|遵|及|导致|引起|出现"
    r"|双[抗联重]|三联|稳|扩|促[进动胃排吸愈]"
    # an effect, not a patent medicine's name (三七止血片)
    r"|(?:强[心化]|营养?|利尿|活血|止)(?![\u4e00-\u9fff]{0,4}(?:片|丸|散|胶囊|颗粒|膏|注射))",
    re.I,
)


class FreeText:
    """Reads the drugs that a text prescribes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._linked: dict[str, str | None] = {}

    def link(self, name: str) -> str | None:
        """The label that a name means, or None; a number means none."""
        if not re.search(r"[^\W\d_]", name):
            return None
        key = name.strip()
        if key not in self._linked:
            drug = match(key, self._vocabulary).drug
            self._linked[key] = drug.label if drug else None
        return self._linked[key]

    @cached_property
    def _known(self) -> frozenset[str]:
        """Names to look for in running text, as `clean` writes Latin letters; a label that is no drug is none of them."""
        bad = {drug.label for drug in self._vocabulary if drug.kind in UNKNOWN}
        every = {*load_lexicon().spellings, *(unicodedata.normalize("NFKC", label) for label in self._vocabulary.labels)}
        return frozenset(n.upper() for n in every - bad if len(n) > 1 and re.search("[\u4e00-\u9fff]|[A-Za-z]{4}", n))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._known))

    def read(self, text: str) -> list[str] | None:
        """The names of an answer, or None where it holds no list. An answer of our own format is read by `data.answer`."""
        if (own := self._own(text)) is not None:
            return own
        spread = _CIRCLED.sub("\n", _THINKING.sub("", text)).replace("\r", "\n")
        plain = _MARKUP.sub("", unicodedata.normalize("NFKC", spread))
        parts = list(_sections(plain))
        for part in parts:
            if _NONE.match(part):
                return []
            names = self._array(part) or self._prescribed(part, headed=len(parts) > 1 and part is not parts[-1])
            if names:
                return list(dict.fromkeys(names))
        return None

    def _own(self, text: str) -> list[str] | None:
        """The list of an answer in our own format, repeats and unknown names included; None for other texts."""
        body = "\n" + text.strip()
        if HEADER not in body:
            return None
        line, _, rest = body.partition(HEADER)[2].partition("\n")
        drugs = parse(text).drugs
        if drugs and all(drug in self._vocabulary for drug in drugs):
            return list(drugs)
        if rest.strip() or _OTHER_MARKS.search(line.strip()) or _NONE.match(line) or _STOP.search(line):
            return None
        if any(not self.link(drug) and len(self._scan(drug)) > 1 for drug in drugs):
            return None
        return [self.link(drug) or drug for drug in drugs]

    def _array(self, text: str) -> list[str]:
        """The names of the first JSON value in a text that holds some."""
        for start in (found.start() for found in re.finditer(r"[\[{]", text)):
            try:
                value, _ = json.JSONDecoder().raw_decode(text[start:])
            except (ValueError, RecursionError):
                continue
            if names := list(_strings(value)):
                return [self.link(name) or name for name in names]
        return []

    def _prescribed(self, text: str, *, headed: bool) -> list[str]:
        """The names of all lines that belong to a list or prescribe; `headed`: a header said that the list begins."""
        taking, names = True, list[str]()
        for raw in text.split("\n"):
            bullet = _BULLET.match(raw)
            line = raw[bullet.end() :].strip() if bullet else raw.strip()
            head = re.fullmatch(r"(.{1,24}):\W*", line)
            if head and not self._scan(head[1]):
                taking = not _OUT_HEAD.search(head[1]) and (taking or bool(_IN_HEAD.search(head[1])))
                continue
            if not line or not taking or set(line) <= set("|-: "):
                continue
            opening = re.match(r"([^,。;:、\d]{2,12}):", line)
            if opening and _OUT_HEAD.search(opening[1]) and not self._scan(opening[1]):
                continue
            names += self._line(line, listed=bool(bullet) or headed or _is_row(line))
        return names

    def _line(self, line: str, *, listed: bool) -> Iterator[str]:
        asides: list[str] = []
        line = _ENUMERATION.sub("\ue002", _hide_asides(line, asides))
        for sentence in re.split(r"[。;!?\ue002]", line):
            maybe = _IF.search(sentence)
            sentence = sentence[: maybe.start()] if maybe else sentence
            colon = sentence.find(":")
            if colon >= 0 and _STOP.search(sentence[:colon]) and not self._scan(sentence[:colon]):
                continue
            for clause in _COMMA.split(sentence):
                yield from self._clause(clause, asides, listed=listed)

    def _clause(self, clause: str, asides: list[str], *, listed: bool) -> Iterator[str]:
        """The names of a clause without commas. A stop holds for all that is enumerated after it."""
        pieces = [piece for piece in re.split(r"[、|\t+\"\[\]{}]|(?<=[\s\w]):", clause) if piece.strip()]
        place = 0
        for number, piece in enumerate(pieces):
            start = clause.index(piece, place)
            place = start + len(piece)
            spans = self._named(piece, asides)
            for begin, end, label in spans:
                others = self._follows(piece[end:], *pieces[number + 1 :])
                if not _is_stopped(clause[: start + begin], _stops_shown(clause[start + end :], asides), others):
                    yield label
            alone = listed and (number == 0 or "、" in clause)
            if not spans and not _STOP.search(clause[:place]) and self._is_name(piece, listed=alone):
                yield clean(_shown(piece, asides)).text

    def _named(self, piece: str, asides: list[str]) -> list[tuple[int, int, str]]:
        """(start, end, label) of the names in a piece: the piece as one name, names within it, or those in its brackets."""
        bare = _ASIDES.sub("", piece).strip()
        is_name = not (_STOP.search(bare) or _GO.search(bare) or _PROSE.fullmatch(bare))
        if is_name and (parts := self._alternatives(piece, asides)):
            return parts
        if is_name and (whole := self.link(_shown(piece, asides))):
            aside = _ASIDES.search(piece)
            return [(0, aside.start() if aside else len(piece), whole)]
        if spans := self._scan(piece, asides):
            return spans
        inside = _ASIDES.findall(piece) if re.search("(?:类|药物?|剂|治疗)$", bare) else []
        return [(0, len(piece), label) for hit in inside for label in self._line(asides[int(hit)], listed=False)]

    def _alternatives(self, piece: str, asides: list[str]) -> list[tuple[int, int, str]]:
        """The names of a piece that are joined by a slash; none where the whole may be one compound drug (A/B片)."""
        parts = piece.split("/")
        whole = _shown(piece, asides)
        if len(parts) == 1 or self.link(whole):
            return []
        labels = [self.link(_shown(part, asides)) or "" for part in parts]
        if not all(labels) or meaning(whole).method != "none":
            return []
        forms = [bool(form_of(clean(_ASIDES.sub("", part)).text)) for part in parts]
        if forms[-1] and not all(forms):
            return []
        ends = [sum(map(len, parts[: n + 1])) + n for n in range(len(parts))]
        return [(end - len(part), end, label) for part, end, label in zip(parts, ends, labels, strict=True)]

    def _follows(self, *pieces: str) -> bool:
        return any(self._scan(piece) for piece in pieces)

    def _is_name(self, item: str, *, listed: bool) -> bool:
        """Whether an unknown item is a drug's name: it has a form or a dose, or stands alone in a list, and is no prose."""
        name = clean(_ASIDES.sub("", item)).text
        if not 2 <= len(name) <= 16 or _PROSE.search(name) or is_no_drug(name) or not re.search("[\u4e00-\u9fffA-Z]{2}", name):
            return False
        return bool(listed or form_of(name) or _DOSED.search(item))

    def _scan(self, text: str, asides: list[str] | None = None) -> list[tuple[int, int, str]]:
        """(start, end, label) of the known names in a text, longest first, each between words that can stand beside it."""
        upper, found, place = text.upper(), [], 0
        while place < len(text):
            end = place + self._size(upper, place)
            if end == place:
                place += 1
                continue
            end = _with_form(text, place, end)
            start = _with_salt(text, place, end)
            if _LEAD.search(text[:start]) and _FOLLOW.match(text[end:]):
                aside = _ASIDES.match(text, end) if asides else None
                label = self.link(text[start:end] + _shown(aside[0] if aside else "", asides or []))
                found += [(start, end, label)] if label else []
            place = end
        return found

    def _size(self, upper: str, place: int) -> int:
        """The length of the longest known name that begins at a place; 0 where none does."""
        sizes = range(min(self._longest, len(upper) - place), 1, -1)
        return next((size for size in sizes if upper[place : place + size] in self._known), 0)


def _sections(text: str) -> Iterator[str]:
    """Where the list may stand: behind the headers, the last and the plainest first; then the whole text."""
    for pattern in _HEADS:
        for found in reversed(list(pattern.finditer(text))):
            yield text[found.end() :]
    yield text


def _is_row(line: str) -> bool:
    """Whether a line is a row of a table or names one after the other."""
    parts = re.split("[、,;]", line.rstrip("。"))
    return line.startswith("|") or (len(parts) > 2 and all(1 < len(part.strip()) <= 14 for part in parts))


def _strings(value: Any) -> Iterator[str]:
    """Names in a JSON value: strings of an array, names of its objects, arrays under keys that speak of drugs."""
    if isinstance(value, list):
        for entry in value:
            keys = [key for key in (*DRUG_KEYS, "name") if key in entry] if isinstance(entry, dict) else []
            name = entry[keys[0]] if keys else entry
            if isinstance(name, str) and name.strip():
                yield name.strip()
    elif isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if not _OUT_HEAD.search(key) and not _OUT_KEY.search(key)}
        keys = [key for key in kept if re.search("药|drug|medic|predict|处方", key, re.I)]
        for key in keys or [key for key in kept if re.search("recommend|推荐", key, re.I)]:
            yield from _strings(kept[key])


def _hide_asides(line: str, asides: list[str]) -> str:
    """The line with brackets exchanged for marks, so that what they hold separates nothing."""

    def take(found: re.Match[str]) -> str:
        asides.append(found[1])
        return _ASIDE.format(len(asides) - 1)

    return re.sub(r"[(【〔<]([^()【】〔〕<>]*)[)】〕>]", take, line)


def _shown(text: str, asides: list[str]) -> str:
    """The text with its brackets put back."""
    return _ASIDES.sub(lambda hit: f"({asides[int(hit[1])]})", text)


def _stops_shown(text: str, asides: list[str]) -> str:
    """The text with the first bracket put back where it begins with a stop: 阿司匹林(已停用)."""
    return _ASIDES.sub(lambda hit: asides[int(hit[1])] if _STOPPED_ASIDE.match(asides[int(hit[1])]) else "", text, count=1)


def _with_form(text: str, start: int, end: int) -> int:
    """The end of a name with its form, its salt and an insulin's mixing ratio: they belong to it."""
    ratio = re.match(r"\d{2}(?:/\d{2})?R?(?![\d.]|\s*(?:u|iu|单位|mg|g|ml|μg|ug|片|支))|[RN](?![a-z])", text[end:], re.I)
    end += ratio.end() if ratio else 0
    fitting = [size for size in range(1, 9) if form_of(text[start : end + size]) == text[end : end + size] != ""]
    end += max(fitting, default=0)
    salt = re.match("[钠钾钙](?![\u4e00-\u9fff]*[片剂])", text[end:])
    return end + bool(salt and normalise(text[start : end + 1]) == normalise(text[start:end]))


def _with_salt(text: str, start: int, end: int) -> int:
    """The start of a name with an acid, a maker or 注射用 before it: what does not change its bare name."""
    bare = normalise(text[start:end])
    fitting = [n for n in range(1, min(6, start) + 1) if bare and normalise(text[start - n : end]) == bare]
    fitting = [n for n in fitting if not re.search(r"\W", text[start - n : start])]
    return start - max(fitting, default=0)


def _is_stopped(before: str, after: str, others_follow: bool) -> bool:
    """Whether a clause takes a drug away: a stop before it that no go follows, a stop after it, or a change to another drug."""
    stop = max((found.end() for found in _STOP.finditer(before)), default=-1)
    go = max((found.end() for found in _GO.finditer(before)), default=-1)
    if stop > go:
        return True
    change = _CHANGE.search(after)
    if change and others_follow:
        return True
    ends = _STOPPED.search(after[: change.start()] if change else after)
    return bool(ends and not re.search("恢复|继续", after[ends.end() :]) and not others_follow)
