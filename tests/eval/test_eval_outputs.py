import json

import pytest

from yaofang.data.answer import Answer, render
from yaofang.data.submission import write_submission
from yaofang.eval.answer_text import FreeText
from yaofang.eval.evaluate import evaluate
from yaofang.eval.outputs import read_predictions
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.lexicon import load_lexicon
from yaofang.vocab.matching import generic_of

VOCABULARY = load_vocabulary()
FREE = FreeText(VOCABULARY)
LISTS = {"1-1": ["二甲双胍", "氨氯地平片"], "1-2": ["硝苯地平控释片"], "2-1": ["诺和灵30R", "左氨氯地平", "甲钴胺"]}


def put(folder, name, content, encoding="utf-8"):
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def read(folder, name, content, skip=None, encoding="utf-8"):
    return read_predictions(put(folder, name, content, encoding), VOCABULARY, skip)


def lines(*entries):
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


ANSWERS = {
    "numbered list with doses, bold names and a closing sentence": (
        """根据患者的病情，建议出院带药如下：

1. **二甲双胍片** 0.5g 口服 每日三次（餐后服用）
2. **阿卡波糖片** 50mg，随餐嚼服，每日三次
3. **阿托伐他汀钙片** 20mg qn
4. **阿司匹林肠溶片** 0.1g 每日一次

以上药物请遵医嘱服用，定期监测血糖、血脂及肝肾功能。如有不适及时就诊。""",
        ["盐酸二甲双胍片", "阿卡波糖", "阿托伐他汀钙片", "阿司匹林肠溶片"],
    ),
    "groups, brands in brackets and a section of cautions": (
        """### 出院带药
- 降糖药：
  - 盐酸二甲双胍缓释片 0.5g bid
  - 达格列净片(安达唐) 10mg qd
- 降压药：
  - 苯磺酸氨氯地平片（络活喜）5mg，每日一次

### 注意事项
1. 停用格列美脲；
2. 避免使用布洛芬等非甾体抗炎药。""",
        ["盐酸二甲双胍缓释片", "达格列净片", "苯磺酸氨氯地平片"],
    ),
    "table": (
        "| 药品名称 | 剂量 | 用法 | 目的 |\n|---|---|---|---|\n| 甘精胰岛素注射液 | 12U | 睡前皮下注射 | 控制空腹血糖 |\n"
        "| 缬沙坦胶囊 | 80mg | 每日1次 | 降压 |\n| 硫酸氢氯吡格雷片 | 75mg | qd | 抗血小板 |",
        ["重组甘精胰岛素注射液", "缬沙坦胶囊", "硫酸氢氯吡格雷片"],
    ),
    "prose with stopped and changed drugs": (
        "患者既往服用格列齐特，血糖控制不佳，停用格列齐特，改用二甲双胍0.5g每日三次联合西格列汀100mg每日一次，"
        "继续口服缬沙坦胶囊降压治疗，阿司匹林因消化道出血停用。",
        ["二甲双胍", "磷酸西格列汀片", "缬沙坦胶囊"],
    ),
    "prose with a case that may come": (
        "出院后继续口服二甲双胍、阿卡波糖降糖，阿托伐他汀调脂，若血压仍高，可加用氨氯地平。",
        ["二甲双胍", "阿卡波糖", "阿托伐他汀钙片"],
    ),
    "array in a code block": ('```json\n["二甲双胍", "阿卡波糖"]\n```', ["二甲双胍", "阿卡波糖"]),
    "object in a code block": ('好的：\n```json\n{"出院带药": ["二甲双胍"], "停用药物": ["格列美脲"]}\n```', ["二甲双胍"]),
    "objects with doses": ('{"药物": [{"name": "二甲双胍", "dose": "0.5g"}, {"name": "阿卡波糖"}]}', ["二甲双胍", "阿卡波糖"]),
    "thinking is not an answer": ("<think>也许格列美脲</think>二甲双胍；阿卡波糖", ["二甲双胍", "阿卡波糖"]),
    "commas alone": ("二甲双胍,阿卡波糖，瑞格列奈", ["二甲双胍", "阿卡波糖", "瑞格列奈"]),
    "numbers without breaks": ("1.二甲双胍2.阿卡波糖3.格列美脲", ["二甲双胍", "阿卡波糖", "格列美脲"]),
    "circled numbers": ("出院带药：①硝苯地平控释片30mg qd；②碳酸钙片0.6g qd。定期门诊复查。", ["硝苯地平控释片", "碳酸钙片"]),
    "one name a line": ("推荐药物：\n二甲双胍\n甲钴胺\n\n理由：不宜使用格列本脲。", ["二甲双胍", "甲钴胺"]),
    "brands": ("出院用药：拜阿司匹灵 100mg/日，波立维 75mg/日，立普妥 20mg/晚", ["拜阿司匹灵", "波立维", "立普妥"]),
    "stopped drugs before the header": (
        "停用药物：阿司匹林、氯吡格雷\n出院带药：利伐沙班片10mg qd、雷贝拉唑钠肠溶片",
        ["利伐沙班片", "雷贝拉唑"],
    ),
    "a stop after the list": ("出院带药：阿司匹林肠溶片、甲钴胺，嘱其停用布洛芬", ["阿司匹林肠溶片", "甲钴胺"]),
    "one drug for another": ("以阿卡波糖替代格列美脲；建议将二甲双胍改为瑞格列奈2mg tid。", ["阿卡波糖", "瑞格列奈"]),
    "conditions in brackets": ("1. 阿司匹林肠溶片100mg qd（如有出血停用）\n2. 氯吡格雷（已停用）", ["阿司匹林肠溶片"]),
    "a class with its drug in brackets": ("他汀类药物（阿托伐他汀钙片 20mg 每晚一次）", ["阿托伐他汀钙片"]),
    "an allergy": ("患者对青霉素过敏，建议出院后口服甲钴胺0.5mg tid。", ["甲钴胺"]),
    "words that hold a drug's name": ("胰岛素抵抗明显，监测葡萄糖及甘油三酯，可定期复查。予二甲双胍0.5g bid", ["二甲双胍"]),
    "table with numbers": (
        "| 序号 | 药品 | 剂量 |\n|---|---|---|\n| 1 | 二甲双胍 | 0.5g |\n| 2 | 阿卡波糖 | 50mg |",
        ["二甲双胍", "阿卡波糖"],
    ),
    "keys of drugs to avoid": (
        '{"discharge_medications": ["二甲双胍"], "contraindicated_drugs": ["格列美脲"], "排除药物": ["瑞格列奈"], '
        '"excluded_drugs": ["阿卡波糖"], "非药物治疗": ["低盐饮食"]}',
        ["二甲双胍"],
    ),
    "recommended and not": ('{"recommended": ["二甲双胍"], "not_recommended": ["格列美脲"]}', ["二甲双胍"]),
    "recommendations beside drugs": ('{"drugs": ["二甲双胍"], "recommendations": ["低盐饮食"]}', ["二甲双胍"]),
    "a comma inside a name": ("出院带药：\n1. 2,5-二羟基苯磺酸钙 0.5g tid\n2. 二甲双胍", ["羟苯磺酸钙", "二甲双胍"]),
    "our header, blanks": ("出院带药：二甲双胍 阿卡波糖 甲钴胺", ["二甲双胍", "阿卡波糖", "甲钴胺"]),
    "our header, numbers": ("出院带药：1.二甲双胍 2.阿卡波糖", ["二甲双胍", "阿卡波糖"]),
    "our header, doses": ("出院带药：二甲双胍 0.5g tid 阿卡波糖 50mg tid", ["二甲双胍", "阿卡波糖"]),
    "our header, a word between": ("出院带药：二甲双胍和阿卡波糖", ["二甲双胍", "阿卡波糖"]),
    "our header, a slash": ("出院带药：二甲双胍/阿卡波糖", ["二甲双胍", "阿卡波糖"]),
    "our header, 等": ("出院带药：甲钴胺、阿卡波糖等", ["甲钴胺", "阿卡波糖"]),
    "our header, nothing": ("出院带药：无特殊用药", []),
    "our header, no drugs taken home": ("出院带药：未带药", []),
    "effects behind names": (
        "继续予甲钴胺营养神经，螺内酯片利尿，阿司匹林肠溶片、硫酸氢氯吡格雷片双联抗血小板，阿托伐他汀钙稳定斑块",
        ["甲钴胺", "螺内酯", "阿司匹林肠溶片", "硫酸氢氯吡格雷片", "阿托伐他汀钙片"],
    ),
    "a salt behind a name": ("患者出院后口服瑞舒伐他汀钙10mg qn", ["瑞舒伐他汀"]),
    "a compound that begins as a drug": ("患者出院后口服甲钴胺及阿司匹林双嘧达莫缓释胶囊治疗", ["甲钴胺"]),
    "education is no drug": ("出院带药：\n1. 二甲双胍\n2. 健康教育", ["二甲双胍"]),
    "nothing prescribed": ("出院带药：无", []),
    "a refusal": ("抱歉，作为AI语言模型，我无法提供具体的用药建议，请咨询医生。", None),
    "advice alone": ("低盐低脂饮食，控制血糖，定期复查肝功能。", None),
}


@pytest.mark.parametrize(("text", "expected"), ANSWERS.values(), ids=list(ANSWERS))
def test_an_answer_as_chat_models_write_it_gives_its_drugs(text, expected):
    assert FREE.read(text) == expected


@pytest.mark.parametrize(
    "shape", ["1. {} 2.5mg qd", "出院带药：{}、甲钴胺", "予{}2.5mg每日一次，甲钴胺0.5mg tid", '["{}"]', "{}"]
)
def test_levamlodipine_is_never_read_as_amlodipine_nor_a_compound_as_one_of_its_parts(shape):
    for name in ("左旋氨氯地平", "左氨氯地平", "新左旋氨氯地平", "S-氨氯地平", "氨氯地平贝那普利", "氨氯地平/贝那普利片"):
        found = FREE.read(shape.format(name)) or []
        assert not {VOCABULARY.drug(one).generic for one in found if one in VOCABULARY} & {"氨氯地平", "贝那普利"}


def test_a_compound_with_a_slash_is_one_drug():
    for text in ("出院带药：左旋多巴/苄丝肼", "1. 左旋多巴/苄丝肼片 0.25g tid"):
        assert [VOCABULARY.drug(name).generic for name in FREE.read(text)] == ["多巴丝肼"]
    assert not set(FREE.read("出院带药：沙库巴曲/二甲双胍片") or []) & {"二甲双胍"}


def test_no_number_names_a_drug():
    assert [name for name in load_lexicon().spellings if name.isdecimal()] == []
    assert generic_of("1,6-二磷酸果糖") == "果糖二磷酸"
    assert FREE.link("2,5-二羟基苯磺酸钙") == FREE.link("羟苯磺酸钙") is not None


def test_an_unknown_name_of_a_list_is_kept_as_written_and_counted(tmp_path):
    found = read(
        tmp_path, "a.jsonl", lines({"id": "1-1", "text": "出院带药：\n1. 二甲双胍 0.5g\n2. 希罗达新 10mg qd\n3. 希罗达新"})
    )
    assert found.lists == {"1-1": ["二甲双胍", "希罗达新"]}
    assert (found.unmatched, found.unmatched_names) == (1, ("希罗达新",))


def test_answers_without_a_list_are_empty_and_told(tmp_path):
    found = read(
        tmp_path, "a.jsonl", lines({"ID": "1-1", "output": "无法判断。"}, {"就诊标识": "1-2", "answer": "出院带药：无"})
    )
    assert found.lists == {"1-1": [], "1-2": []}
    assert (found.shape, found.unparsed, found.unparsed_ids) == ("text", 1, ("1-1",))


def test_a_submission_keeps_its_names_and_links_only_what_is_no_label(tmp_path):
    entries = [{"ID": "1-1", "prediction": ["氨氯地平片", "盐酸二甲双胍片0.5g", "无此药", "氨氯地平片"]}]
    found = read(tmp_path, "s.json", entries)
    assert found.lists == {"1-1": ["氨氯地平片", "盐酸二甲双胍片", "无此药", "氨氯地平片"]}
    assert (found.shape, found.unmatched, found.unmatched_names) == ("submission", 1, ("无此药",))


def test_our_own_answers_as_text_score_exactly_as_the_submission(tmp_path):
    labels = [label for label in VOCABULARY.labels if "、" not in label]
    lists = {f"{n}-1": labels[n * 7 : n * 7 + 7] for n in range(90)} | {"91-1": [labels[0], labels[0]]}
    gold = {id_: names[:4] + labels[3:5] for id_, names in lists.items()}
    with (tmp_path / "sub.json").open("w", encoding="utf-8") as handle:
        json.dump([{"ID": i, "prediction": names} for i, names in lists.items()], handle, ensure_ascii=False)
    texts = ({"ID": i, "text": render(Answer(("2型糖尿病（极高危）",), tuple(names)))} for i, names in lists.items())
    text, submission = read(tmp_path, "t.jsonl", lines(*texts)), read_predictions(tmp_path / "sub.json", VOCABULARY)
    assert text.lists == submission.lists == lists
    conflicts = load_conflicts(VOCABULARY)
    scores = [evaluate(gold, one.lists, VOCABULARY, conflicts, resamples=100).to_json() for one in (text, submission)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
def test_a_table_is_read_in_the_encodings_that_spreadsheets_write(tmp_path, encoding):
    rows = "就诊标识,科室,药品\r\n1-1,内分泌,二甲双胍\r\n1-1,内分泌,阿卡波糖片 50mg\r\n1-2,内分泌,\r\n"
    found = read(tmp_path, "t.csv", rows, encoding=encoding)
    assert (found.shape, found.lists) == ("csv", {"1-1": ["二甲双胍", "阿卡波糖"], "1-2": []})


@pytest.mark.parametrize(
    "cell",
    [
        "二甲双胍、阿卡波糖",
        '"二甲双胍,阿卡波糖"',
        "二甲双胍；阿卡波糖",
        "二甲双胍;阿卡波糖",
        "\"['二甲双胍', '阿卡波糖']\"",
        "['二甲双胍' '阿卡波糖']",
        '"[二甲双胍, 阿卡波糖]"',
    ],
)
def test_a_table_may_hold_a_list_a_row(tmp_path, cell):
    assert read(tmp_path, "t.csv", f"ID,drug\n1-1,{cell}\n").lists == {"1-1": ["二甲双胍", "阿卡波糖"]}


@pytest.mark.parametrize("column", ["drug", "prediction", "output"])
@pytest.mark.parametrize("cell", ["nan", "None", "null", "[]", "[nan]"])
def test_what_programs_write_for_no_list_is_an_empty_one(tmp_path, column, cell):
    found = read(tmp_path, "t.csv", f"ID,{column}\n1-1,{cell}\n")
    assert (found.lists, found.unparsed) == ({"1-1": []}, 0)


TOLD = {
    "prediction": ("建议停用格列美脲，继续二甲双胍0.5g tid。", ["二甲双胍"]),
    "text": ("出院诊断：2型糖尿病 出院带药：二甲双胍、阿卡波糖", ["二甲双胍", "阿卡波糖"]),
    "output": ("二甲双胍 0.5g tid 阿卡波糖 50mg tid", ["二甲双胍", "阿卡波糖"]),
    "answer": ("\"['二甲双胍' '阿卡波糖']\"", ["二甲双胍", "阿卡波糖"]),
}


@pytest.mark.parametrize(("column", "told"), TOLD.items())
def test_a_column_of_answers_is_read_as_a_text_or_as_a_list(tmp_path, column, told):
    assert read(tmp_path, "t.csv", f"ID,{column}\n1-1,{told[0]}\n").lists == {"1-1": told[1]}


@pytest.mark.parametrize("gold", ["text", "answer", "label", "出院带药", "出院带药列表"])
def test_gold_beside_a_prediction_is_not_taken_for_it(tmp_path, gold):
    for name in ("prediction", "output"):
        found = read(tmp_path, "t.csv", f"ID,{gold},{name}\n1-1,格列美脲,二甲双胍\n")
        assert found.lists == {"1-1": ["二甲双胍"]}
        entry = {"ID": "1-1", gold: "格列美脲", name: "二甲双胍"}
        for file, content in (("t.jsonl", lines(entry)), ("t.json", [entry])):
            assert read(tmp_path, file, content).lists == {"1-1": ["二甲双胍"]}


def test_an_array_with_texts_beside_its_lists_is_read(tmp_path):
    entry = {"ID": "1-1", "text": "入院前服用格列美脲。", "prediction": ["二甲双胍"]}
    assert read(tmp_path, "t.json", [entry]).lists == {"1-1": ["二甲双胍"]}


def test_a_mapping_and_lists_in_lines_are_read_name_by_name(tmp_path):
    assert read(tmp_path, "m.json", LISTS).lists == LISTS
    found = read(tmp_path, "m.jsonl", lines(*({"ID": i, "prediction": names} for i, names in LISTS.items())))
    assert (found.shape, found.lists, found.unmatched) == ("text", LISTS, 0)


BAD = {
    "no ID": ("a.jsonl", lines({"ID": "1-1", "text": "二甲双胍"}, {"text": "甲钴胺"}), r"a\.jsonl, line 2, field ID"),
    "no text": ("a.jsonl", lines({"ID": "1-1", "text": "二甲双胍"}, {"ID": "1-2"}), r"line 2, field text"),
    "an ID twice": (
        "a.jsonl",
        lines({"ID": "1-1", "text": "x"}, {"ID": "1-1", "text": ""}),
        r"line 2, field ID: 1-1 is given",
    ),
    "broken line": ("a.jsonl", lines({"ID": "1-1", "text": "x"}) + "{", r"line 2.*broken JSON"),
    "not names": ("m.json", {"1-1": ["甲钴胺"], "1-2": 3}, r"field 1-2"),
    "short row": ("t.csv", "ID,drug\n1-1,甲钴胺\n1-2\n", r"line 3, field ID"),
}


@pytest.mark.parametrize(("name", "content", "says"), BAD.values(), ids=list(BAD))
def test_a_bad_entry_is_told_by_file_line_and_field_or_skipped(tmp_path, name, content, says):
    with pytest.raises(InputError, match=says):
        read(tmp_path, name, content)
    skipped = []
    assert list(read(tmp_path, name, content, skipped.append).lists) == ["1-1"]
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "patient,drug\n1,甲钴胺\n", "line 1, field ID"),
        ("t.csv", "ID,dose\n1-1,1\n", "line 1, field drug"),
        ("e.json", "  ", "empty"),
        ("b.json", '[{"ID": "1-1",\n "prediction": [}]', "line 2"),
        ("s.json", [{"ID": "1-1", "prediction": [], "unsafe": True}], "unsafe"),
    ],
)
def test_a_file_of_no_known_shape_is_refused(tmp_path, name, content, says):
    with pytest.raises(InputError, match=says):
        read(tmp_path, name, content)


def test_what_write_submission_wrote_is_read_back(tmp_path):
    write_submission(tmp_path / "s.json", LISTS.items())
    assert read_predictions(tmp_path / "s.json", VOCABULARY).lists == LISTS
