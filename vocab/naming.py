"""How a drug's name is written: dose, frequency, maker, brackets, form and salt around a generic name.

Works on text alone. It does not know which drugs exist: `yaofang.vocab.matching` decides that.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

ROUTES = (
    "oral",
    "injection",
    "inhaled",
    "ophthalmic",
    "topical",
    "vaginal",
    "rectal",
    "nasal",
    "sublingual",
    "otic",
)

_ORAL_FORMS = (
    "片 缓释片 控释片 肠溶片 分散片 咀嚼片 泡腾片 口崩片 口腔崩解片 薄膜衣片 丸 滴丸 浓缩丸 水蜜丸 大蜜丸 散 "
    "胶囊 软胶囊 硬胶囊 缓释胶囊 肠溶胶囊 肠溶软胶囊 肠溶缓释胶囊 胶丸 颗粒 缓释颗粒 冲剂 干混悬剂 混悬液 混悬凝胶 "
    "口服溶液 口服液 口服混悬液 口服乳 糖浆 合剂 滴剂 缓释 控释"
)
_FORMS_BY_ROUTE = {
    "oral": _ORAL_FORMS,
    "sublingual": "舌下片 舌下含片",
    "injection": "注射液 注射剂 粉针剂 粉针",
    "inhaled": "气雾剂 粉吸入剂 吸入粉雾剂 粉雾剂 吸入气雾剂 吸入溶液 吸入混悬液 吸入喷雾剂 吸入剂 雾化液 雾化吸入溶液",
    "ophthalmic": "滴眼液 眼膏 眼药水 眼用凝胶 眼用制剂",
    "otic": "滴耳液",
    "nasal": "鼻喷雾剂 喷鼻剂 滴鼻液 鼻喷剂 鼻喷",
    "vaginal": "阴道片 阴道栓 阴道软胶囊 阴道泡腾片 阴道凝胶",
    "rectal": "栓 灌肠液 灌肠剂",
    "topical": "乳膏 软膏 凝胶 凝胶贴膏 凝胶膏 贴膏 贴剂 贴片 透皮贴剂 透皮贴 贴 乳胶剂 洗剂 搽剂 酊 喷雾剂 霜 涂剂 外用溶液 "
    "膏",
}
_ROUTE_OF_FORM = {form: route for route, forms in _FORMS_BY_ROUTE.items() for form in forms.split()}
_FORMS_LONGEST_FIRST = sorted(_ROUTE_OF_FORM, key=len, reverse=True)

_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
_MARKS = re.compile(r"[®™©△▲★☆◆●]")
_LIST_NUMBER = re.compile(r"^\s*\(?\d{1,2}[.、)]\s*(?=\D)")
_LIST_NUMBERS = re.compile(r"(^|[\s，、；;。])\(?\d{1,2}[.、．)）](?=\s*[^\d\s])")
_BRACKETS = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]|【([^【】]*)】|〔([^〔〕]*)〕|<([^<>]*)>")
_PREMIX = re.compile(r"^(?:预混|混合|笔芯)?(\d{2}(?:/\d{2})?R?|[RN])$", re.I)
_INSULIN = re.compile(r"胰岛素|诺和[灵锐]|优泌[林乐]|甘舒霖|[秀舒]霖")
_DIGITS = r"\d+(?:\.\d+)?"
_FIRST = r"(?<![A-Za-z0-9./])"
_UNIT = r"\s*(?:万|亿)?\s*(?:mg|g|kg|ug|mcg|μg|ml|l|iu|u|mmol|毫克|微克|克|毫升|升|国际单位|单位|%)(?![A-Za-z])"
_AMOUNT = _DIGITS + _UNIT
_COUNT = _DIGITS + r"\s*(?:片|粒|支|袋|盒|瓶|丸|滴|喷|揿|吸|包|枚|贴|板|s\b)"
_DOSE = re.compile(
    rf"(?:[早中晚]\s*)?{_FIRST}(?:{_DIGITS}/)?(?:{_AMOUNT}|{_COUNT})(?:\s*[:/*×x·]\s*(?:(?:{_AMOUNT}|{_COUNT})|盒|瓶|支|片|粒|袋|板|日|天|次|晚|\d{{1,3}}(?![\d.A-Za-z])))*",
    re.I,
)
_TIMES = r"[一二两三四五六七八九十半每隔\d.]*"
_FREQUENCY = re.compile(
    rf"(?:每次|一次|每日|每天|一日|每晚|每早|每周|每月|隔日){_TIMES}(?:片|粒|支|袋|丸|滴|喷|吸|包|枚|贴|次|单位|U)?"
    r"|\d+次\s*/?\s*(?:日|天|周|晚)"
    r"|口服(?!液|溶液|混悬|乳)|皮下注射|静脉滴注|静滴|肌注|外用(?!溶液)|嚼服|舌下含服|含服|必要时|睡前|空腹|随餐|长期服用"
    r"|[餐饭](?:前|后|中|时)|三餐|早晚"
    r"|(?<![A-Za-z])(?:q\.?d|b\.?i\.?d|t\.?i\.?d|q\.?i\.?d|q\.?n|q\.?o\.?d|q\d{1,2}h|qw|biw|tiw|hs|prn|p\.?o|ih|iv|im|ivgtt|sc|ac|pc|sos)"
    r"(?![A-Za-z])\.?",
    re.I,
)
_MAKERS = (
    "拜耳|辉瑞|诺华|赛诺菲|诺和诺德|礼来|默沙东|默克|阿斯利康|施贵宝|武田|卫材|第一三共|安斯泰来|勃林格|雅培|罗氏"
    "|强生|葛兰素史克|施维雅|石药|齐鲁|正大天晴|信立泰|恒瑞|豪森|扬子江|华东医药|通化东宝|甘李|联邦制药|鲁南|京新"
    "|华海|乐普|进口|国产|集采|自备"
)
_MAKER = re.compile(
    rf"^(?:(?:{_MAKERS})\s*)+(?=[\u4e00-\u9fffA-Za-z0-9]{{2}})|(?:[-—_/\s]*(?:{_MAKERS}))+$"
    r"|[-—\s]+[\u4e00-\u9fff]{2,12}(?:制药|药业|医药|药厂|生物)(?:集团|股份|有限公司)*$"
)
_EDGES = " \t\r\n,，;；。、.:：-—_/+*·\"'“”"
_DEVICE = re.compile(r"(?:预填充|预灌封|笔芯|特充|畅充|笔)+$")
_ROMAN = re.compile(r"(?<=[\u4e00-\u9fff])I{1,3}$")

_SALTS = re.compile(
    r"^(?:盐酸|苯甲酸|硫酸氢|硫酸|苯磺酸|甲苯磺酸|甲磺酸|富马酸|琥珀酸|马来酸|重酒石酸|酒石酸|枸橼酸|磷酸|醋酸|氢溴酸|草酸|脯氨酸|乳酸)"
    # 琥珀酸亚铁, 枸橼酸钾, 醋酸钙: here the acid belongs to the name of a mineral and no organic base follows.
    r"(?!亚铁|铁|钾|钙|镁|铝|锂|锌|钠|铋|镧|酯|菌|可的松)(?=[\u4e00-\u9fff]{2})"
)
_CATION = re.compile(
    r"(?<=[\u4e00-\u9fff]{3})(?<![酸氢化锆钾钙钠镁铝铋])[钠钾钙镁]$|(?<=膦酸|戊酸|芬酸|维酸|沙坦|他汀)[钠钾钙]$"
)
_LOW_MOLECULAR_HEPARIN = re.compile(r"分子肝素[钠钙]$")
_ESTER = re.compile(r"(?<=沙坦)酯$|(?<=头孢呋辛)酯$|(?<=培哚普利)(?:叔丁胺|精氨酸)$")


class CleanName(NamedTuple):
    """A name with what surrounds it taken off, and what stood in its brackets."""

    text: str
    """Form and salt are still there."""
    asides: tuple[str, ...]
    """Contents of brackets: a brand, a maker, a strength, or another name of the drug."""


def clean(text: str) -> CleanName:
    """Take off list numbers, brackets, dose, frequency, device and maker; half-width, capitals, no blanks."""
    plain = _LIST_NUMBER.sub("", _MARKS.sub("", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))))
    plain, asides, premix = _without_brackets(plain)
    plain = _FREQUENCY.sub(" ", _DOSE.sub(" ", plain)).strip(_EDGES)
    plain = _MAKER.sub("", plain).strip(_EDGES)
    plain = _DEVICE.sub("", plain) if len(_DEVICE.sub("", plain)) > 1 else plain
    plain = _capitals(re.sub(r"\s+", "", plain)).strip(_EDGES)
    if premix:
        plain = (without_form(plain) + premix).replace("注射液", "")
    return CleanName(plain, asides)


def normalise(text: str) -> str:
    """The bare name: `clean`, then without the form and without salts. Empty if nothing is left.

    >>> normalise("硫酸氢氯吡格雷片（75mg） qd")
    '氯吡格雷'
    """
    return without_salt(without_form(clean(text).text))


_HEADER = re.compile(r"^\s*(?:出院带药|带药|用药|处方|医嘱)\s*[:：]")
_BETWEEN_NAMES = re.compile(r"[，、；;\n\r\t。|]|\s\+\s|,(?!\d{3})|(?<=\s)(?=\d{1,2}[.)、．]\s*[^\d\s])")


def names_in(text: str) -> list[str]:
    """The names of a free-text list, each with what is written round it, in their order.

    >>> names_in("二甲双胍0.5g tid，阿卡波糖 50mg")
    ['二甲双胍0.5g tid', '阿卡波糖 50mg']
    """
    parts = (part.strip() for part in _BETWEEN_NAMES.split(_LIST_NUMBERS.sub(r"\1\n", _HEADER.sub("", text))))
    return [part for part in parts if part and clean(part).text and not re.fullmatch(r"[\d.()（）\s]+", part)]


def form_of(name: str) -> str | None:
    """The pharmaceutical form at the end of a name: the longest known one, or None."""
    plain = _ROMAN.sub("", name)
    return next((form for form in _FORMS_LONGEST_FIRST if plain.endswith(form) and len(plain) > len(form)), None)


def route_of_form(form: str | None) -> str | None:
    """How a form is given; None if there is no form to tell it."""
    return None if form is None else _ROUTE_OF_FORM.get(form)


def without_form(name: str) -> str:
    """The name without the form at its end, nor `注射用` before it."""
    plain = _ROMAN.sub("", name)
    form = form_of(plain)
    return (plain[: -len(form)] if form else plain).removeprefix("注射用").removeprefix("吸入用") or name


def without_salt(name: str) -> str:
    """The name without an organic acid before it or a cation after it. Minerals keep theirs (碳酸钙, 氯化钾, 琥珀酸亚铁)."""
    bare = _SALTS.sub("", name)
    if not _LOW_MOLECULAR_HEPARIN.search(bare):
        bare = _CATION.sub("", bare)
    return _ESTER.sub("", bare)


def _without_brackets(text: str) -> tuple[str, tuple[str, ...], str]:
    """Text outside brackets, contents of the brackets, and the mixing ratio of an insulin found in one."""
    asides: list[str] = []
    ratios: list[str] = []

    def take(found: re.Match[str]) -> str:
        inside = next(part for part in found.groups() if part is not None).strip()
        ratio = _PREMIX.match(inside) if _INSULIN.search(text) else None
        if ratio:
            ratios.append(_capitals(ratio[1]))
        else:
            asides.append(inside)
        return " " if found.start() == 0 else ""

    return _BRACKETS.sub(take, text), tuple(asides), "".join(ratios)


def _capitals(text: str) -> str:
    return re.sub(r"[a-z]+", lambda found: found[0].upper(), text)
