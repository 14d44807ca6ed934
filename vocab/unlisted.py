"""Names that no table has: what is plainly no drug, and what reads like a Chinese patent medicine.

Patterns only. A word that could be part of a western drug's name never makes a patent medicine.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from yaofang.vocab.files import read_table
from yaofang.vocab.naming import without_form

TABLE = Path(__file__).parent / "default" / "not_drugs.tsv"

_WESTERN = re.compile(
    r"[唑嗪汀胍肽酮酯酸钠钾钙镁锌碘胺肼啶吡噻嘧哌喹呋泮仑酚酰苯酞铋铁铝]|沙坦|普利|洛尔|地平|霉素|沙星|西林|头孢|替尼|单抗|双抗|帕尼|西泮|唑仑"
    r"|他汀|格列|胰岛素|维生素|奥美|曲普|洛芬|昔布|膦|司琼|拉唑|布特|替丁|贝特|卡因|司坦|夫定|韦|茚|蒽|醇|苷|碱|林$|平$|定$|宁$|明$|素$|因$|隆$|松$"
)
_HERBAL = re.compile(
    r"清热|解毒|活血|化瘀|通络|通脉|养血|补血|安神|益气|补气|养阴|滋阴|补肾|益肾|健脾|疏肝|舒肝|养肝|护肝|利胆|理气|止咳|化痰|祛痰|祛风|除湿"
    r"|祛湿|利湿|通便|润肠|明目|止痛|消渴|消炎利|消积|和胃|养胃|温胃|健胃|宽胸|止血|壮骨|强骨|接骨|舒筋|通窍|醒脑|开窍|宣肺|润肺|清肺|固本|固肾"
    r"|复方.{0,3}[参芪丹草归芎]|[人党丹玄沙苦太]参|黄[芪芩连柏]|当归|川芎|三七|丹红|红花|地黄|茯苓|白术|甘草|板蓝根|连翘|银花|金银|桂枝|柴胡|葛根|天麻|杜仲"
    r"|牛黄|麝香|冰片|珍珠|虫草|灵芝|枸杞|山药|山楂|陈皮|木香|砂仁|藿香|香砂|逍遥|六君|四物|八珍|十全|归脾|二陈|五苓|玉屏风|银翘|桑菊|鹿茸|阿胶|益母|乌鸡"
)
_HERBAL_FORM = re.compile(r"(?:丸|散|丹|膏|酒|露|煎|饮|汤|胶囊|颗粒|片|口服液|合剂|糖浆|滴丸|贴膏|膏药|配方颗粒|茶)$")


@cache
def _not_drugs() -> re.Pattern[str]:
    return re.compile("|".join(row["pattern"] for _, row in read_table(TABLE)))


@cache
def _diagnoses() -> frozenset[str]:
    rows = [row for _, row in read_table(TABLE.with_name("diagnoses.tsv"))]
    return frozenset(name for row in rows for name in (row["diagnosis"], *row["synonyms"].split(",")))


def is_no_drug(name: str) -> bool:
    """Whether a name of no drug of the tables is a diagnosis, a device, a test, or a word for drugs of some kind."""
    return name.strip() in _diagnoses() or _not_drugs().search(name.strip()) is not None


def reads_like_patent_medicine(name: str) -> bool:
    """Whether a name is written like a Chinese patent medicine: herbs or the words of their action, and a form."""
    core = without_form(name)
    return bool(_HERBAL_FORM.search(name) and _HERBAL.search(core) and not _WESTERN.search(core))
