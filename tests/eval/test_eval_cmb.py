import hashlib
import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Annotated

import pytest
import torch
import typer
from typer.testing import CliRunner

from yaofang.app.cmb import cmb
from yaofang.decoding.running import Run
from yaofang.eval.cmb.answers import letters_in, read_free_answers
from yaofang.eval.cmb.exam import MULTIPLE, SINGLE, read_answers, read_questions, score
from yaofang.eval.cmb.model import Examinee, LetterTree, examples_for, user_turn
from yaofang.glm.loading import load_model
from yaofang.vocab.errors import InputError

FIXTURE = Path(__file__).with_name("cmb_fixture.json")
QUESTIONS = read_questions([FIXTURE])
BY_ID = {question.id: question for question in QUESTIONS}
ONE, SEVERAL = BY_ID["2"], BY_ID["3"]

app = typer.Typer()
group = typer.Typer(name="evaluate", invoke_without_command=True)
group.command("cmb")(cmb)
app.add_typer(group)


@group.callback()
def evaluate(context: typer.Context, predictions: Annotated[Path | None, typer.Option()] = None) -> None:
    """Stands where `yaofang evaluate --predictions` does."""
    if context.invoked_subcommand is None:
        typer.echo(f"lists of {predictions}")


def run(*arguments):
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def put(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def loaded():
    return load_model(device="cpu")


def gold():
    return {question.id: question.answer for question in QUESTIONS}


def test_the_fixture_has_both_types_and_leaves_blank_options_out():
    assert len(QUESTIONS) >= 12
    assert {question.kind for question in QUESTIONS} == {SINGLE, MULTIPLE}
    assert {question.letters for question in QUESTIONS} == {"ABCD", "ABCDE", "ABCDEF"}
    assert BY_ID["4"].letters == "ABCDE"


# What the published scorer does wrong: it takes every capital of the text, in its order.


def test_capitals_inside_wbc_are_no_answer():
    assert letters_in("WBC升高提示感染。", ONE) is None
    assert letters_in("WBC升高，答案是A。", ONE) == {"A"}
    assert letters_in("答案：WBC", ONE) is None
    assert letters_in("WBC", SEVERAL) is None


@pytest.mark.parametrize("text", ["ABD", "DBA", "B、D、A", "答案：D,B,A。", "答案是A、B和D，与WBC无关", "**BAD**", "选 A B D"])
def test_the_order_of_letters_and_what_stands_between_them_do_not_matter(text):
    letters = letters_in(text, SEVERAL)
    assert score([SEVERAL], {SEVERAL.id: letters}).micro.accuracy == 1


def test_the_order_of_letters_in_the_gold_does_not_matter(tmp_path):
    file = put(tmp_path, "a.json", [{"id": 3, "answer": "D, B,A"}])
    answer = next(q.answer for q in read_questions([FIXTURE], read_answers(file)) if q.id == "3")
    assert answer == SEVERAL.answer


FREE = {
    "a": "A",
    "A. 补液": "A",
    "正确答案是D. 大量补碱": "D",
    "答案为大量补碱": "D",
    "补液": "A",
    "<think>A还是C？</think>E": "E",
    "选项A错误，选项B正确": "B",
    "B选项正确。A项错误。": "B",
    "答案是A，而不是B": "A",
    "The answer is B. Aspirin": "B",
    "因此选C": "C",
    "A 或 B": None,
    "正确答案为B，A错误": "B",
    "答案：A或B": None,
    "答案：A或者B": None,
    "Answer: A or B": None,
    "答案：b": "B",
    "答案：b。": "B",
    "答案：A\n错误选项分析略": "A",
    "B. 手术切除": "B",
    "维生素C缺乏，做B超": None,
    "答案：C反应蛋白": None,
    "我不知道": None,
    "": None,
}


@pytest.mark.parametrize(("text", "letters"), FREE.items())
def test_a_free_answer_is_read_or_left_unparsed(text, letters):
    assert letters_in(text, ONE) == (None if letters is None else frozenset(letters))


SETS = {
    "A、B、D正确": "ABD",
    "A、B、D均正确，C、E错误": "ABD",
    "正确答案是A和B以及C": "ABC",
    "Answer: A, B and C": "ABC",
    "答案：A|C|E": "ACE",
    "答案：A.发热 C.咳痰": "AC",
    "答案：A和B，C不正确": "AB",
    "除D外都对": None,
    "除了选项D，都对": None,
    "不是D": None,
}


@pytest.mark.parametrize(("text", "letters"), SETS.items())
def test_all_letters_of_a_multiple_choice_are_read(text, letters):
    assert letters_in(text, SEVERAL) == (None if letters is None else frozenset(letters))


@pytest.mark.parametrize("name", ["prediction", "model_answer", "output", "response", "pred", "text", "answer_0"])
def test_the_gold_beside_an_answer_is_not_taken_for_it(tmp_path, name):
    assert read_free_answers(put(tmp_path, "a.json", [{"id": 1, "answer": "C", name: "A"}])) == {"1": "A"}


def test_questions_without_id_in_two_files_are_told_apart_by_file(tmp_path):
    values = json.loads(FIXTURE.read_text(encoding="utf-8"))
    bare = [{key: value for key, value in entry.items() if key != "id"} for entry in values[:3]]
    files = [put(tmp_path, "val.json", bare[:2]), put(tmp_path, "test.json", bare[1:])]
    answers = {"1": values[0]["answer"]}
    found = read_questions(files, answers)
    assert [q.id for q in found] == ["1", "2", "test/1", "test/2"]
    assert found[2].answer == found[1].answer
    with pytest.raises(InputError, match="given twice"):
        read_questions([files[0], FIXTURE])


def test_options_listed_by_line_are_the_answer_of_a_multiple_choice():
    assert letters_in("A. 糖尿病视网膜病变\nB. 糖尿病肾病\nD. 糖尿病周围神经病变", SEVERAL) == {"A", "B", "D"}
    assert letters_in("A正确 B正确 C错误 D正确 E错误", SEVERAL) == {"A", "B", "D"}


def test_micro_weighs_questions_and_macro_weighs_classes():
    chosen = {q.id: q.answer if q.exam_type == "护理考试" else frozenset() for q in QUESTIONS}
    result = score(QUESTIONS, chosen)
    shares = {(s.exam_type, s.exam_class): s for s in result.classes}
    nursing = [s for (kind, _), s in shares.items() if kind == "护理考试"]
    assert result.micro.right == sum(s.questions for s in nursing) == 3
    assert result.micro.accuracy == pytest.approx(3 / 14)
    assert result.macro_class == pytest.approx(len(nursing) / len(shares))
    assert result.macro_type == pytest.approx(1 / 4)
    assert dict(result.types)["护理考试"] == 1
    assert result.micro.low < 3 / 14 < result.micro.high


def test_unparsed_and_missing_answers_are_wrong_and_told_apart():
    chosen = gold() | {"1": None}
    del chosen["5"]
    result = score(QUESTIONS, chosen)
    assert (result.unparsed, result.missing, result.micro.right) == (("1",), ("5",), 12)


def test_chance_counts_every_set_of_a_multiple_choice():
    assert ONE.chance == 1 / 5
    assert SEVERAL.chance == 1 / 31
    assert score([ONE, SEVERAL], {}).micro.chance == pytest.approx((1 / 5 + 1 / 31) / 2)


BAD = {
    "question_type": {"question_type": "判断题"},
    "option": {"option": {"A": "只有一个"}},
    "answer": {"answer": "F"},
    "question": {"question": " "},
    "id": {"id": 1},
}


@pytest.mark.parametrize(("field", "change"), BAD.items())
def test_a_bad_question_is_told_by_file_entry_and_field_or_skipped(tmp_path, field, change):
    first, second = json.loads(FIXTURE.read_text(encoding="utf-8"))[:2]
    file = put(tmp_path, "q.json", [first, second | change])
    with pytest.raises(InputError, match=rf"q\.json, field {field}: entry 2: "):
        read_questions([file])
    skipped = []
    assert [q.id for q in read_questions([file], skip=skipped.append)] == ["1"]
    assert len(skipped) == 1


def test_lines_are_read_as_an_array_is_and_errors_name_them(tmp_path):
    values = json.loads(FIXTURE.read_text(encoding="utf-8"))
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    assert read_questions([put(tmp_path, "q.jsonl", text)]) == QUESTIONS
    with pytest.raises(InputError, match="line 15"):
        read_questions([put(tmp_path, "bad.jsonl", text + "\n{")])
    with pytest.raises(InputError, match=r"f\.jsonl, line 2, field id"):
        read_free_answers(put(tmp_path, "f.jsonl", '{"id": 1, "output": "A"}\n{"output": "B"}'))


def test_two_answers_in_one_single_choice_are_no_gold(tmp_path):
    with pytest.raises(InputError, match="does not fit 单项选择题"):
        read_questions([FIXTURE], {"1": "AB"})


# The model.


def test_a_prompt_is_ids_of_the_template_with_the_benchmarks_words(loaded):
    ids, shots = Examinee(loaded).prompt(ONE)
    template = loaded.template
    assert ids == [*template.prompt_ids([{"role": "user", "content": user_turn(ONE)}]), *template.encode("\n")]
    assert shots == 0
    assert "以下是中国医师考试中执业医师考试的一道单项选择题，不需要做任何分析和解释，直接输出答案选项。" in user_turn(ONE)
    assert "\nA. 补液\nB. 立即输入全血" in user_turn(ONE)


def test_examples_are_never_the_question_itself_and_are_answered_in_single_letters(loaded):
    respaced = replace(SEVERAL, id="99", text=" ".join(SEVERAL.text))
    offered = examples_for(SEVERAL, [respaced, *QUESTIONS], 99)
    assert {e.id for e in offered} == set(BY_ID) - {SEVERAL.id}
    assert offered[0].multiple
    template = loaded.template
    (example,) = examples_for(SEVERAL, QUESTIONS, 1)
    ids, shots = Examinee(loaded, QUESTIONS, 1).prompt(SEVERAL)
    letters = [i for letter in sorted(example.answer) for i in template.encode(letter)]
    turn = [template.roles["assistant"], *template.encode("\n"), *letters, template.roles["user"]]
    assert shots == 1
    assert any(ids[place : place + len(turn)] == turn for place in range(len(ids)))


def test_examples_that_do_not_fit_the_context_are_left_out_and_counted(loaded):
    full, _ = Examinee(loaded, QUESTIONS, 2).prompt(ONE)
    small = replace(loaded, context=len(full))
    assert Examinee(small, QUESTIONS, 2).prompt(ONE)[1] < 2
    with pytest.raises(InputError, match="question 2 has"):
        Examinee(replace(loaded, context=10)).prompt(ONE)


def logits_after(loaded, ids):
    return Run(loaded, [ids]).logits[0].log_softmax(-1)


def test_a_single_choice_is_the_most_probable_of_the_questions_own_letters(loaded):
    singles = [q for q in QUESTIONS if not q.multiple]
    examinee = Examinee(loaded)
    for choice in examinee.answers(singles, batch_size=3):
        question = BY_ID[choice.id]
        logits = logits_after(loaded, examinee.prompt(question)[0])
        scores = {letter: float(logits[loaded.template.encode(letter)[0]]) for letter in question.letters}
        assert choice.letters == {max(scores, key=scores.get)}
        total = sum(math.exp(value) for value in scores.values())
        assert choice.probability == pytest.approx(math.exp(max(scores.values())) / total, rel=1e-3)


def test_a_multiple_choice_is_the_best_of_all_sets_each_scored_letter_by_letter(loaded):
    question = BY_ID["12"]
    examinee = Examinee(loaded)
    (choice,) = examinee.answers([question])
    prompt, _ = examinee.prompt(question)
    ids = {letter: loaded.template.encode(letter)[0] for letter in question.letters}
    sets = ["".join(letters) for size in range(6) for letters in combinations(question.letters, size)]
    rows = Run(loaded, [prompt + [ids[letter] for letter in letters] for letters in sets])
    after = dict(zip(sets, rows.logits.log_softmax(-1), strict=True))
    scores = {
        frozenset(letters): sum(float(after[letters[:n]][ids[letter]]) for n, letter in enumerate(letters))
        + float(after[letters][loaded.template.stop_id])
        for letters in sets[1:]
    }
    best = max(scores, key=scores.get)
    assert choice.letters == best
    share = math.exp(scores[best]) / sum(math.exp(value) for value in scores.values())
    assert choice.probability == pytest.approx(share, rel=1e-3)


def test_the_tree_holds_every_set_of_six_letters_once():
    tree = LetterTree("ABCDEF")
    assert len(tree.nodes) == len(set(tree.nodes)) == 63
    assert tree.nodes[tree.parents[tree.nodes.index("ACE")]] == "AC"
    assert torch.equal(tree.ancestors.sum(-1), tree.depths + 1)


# The verb.


def test_the_verb_runs_the_bundled_model_writes_the_result_and_says_that_it_guesses(tmp_path):
    stripped = [{k: v for k, v in q.items() if k != "answer"} for q in json.loads(FIXTURE.read_text(encoding="utf-8"))]
    answers = [{"id": q.id, "answer": "".join(sorted(q.answer))} for q in QUESTIONS]
    files = ("--questions", put(tmp_path, "q.json", stripped), "--answers", put(tmp_path, "a.json", answers))
    done = run("cmb", *files, "--shots", 1, "--examples", FIXTURE, "--device", "cpu", "--out", tmp_path / "r.json")
    value = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert "随机猜测水平" in done.stderr
    assert "未能解析的答案" in done.stdout
    assert (value["unparsed"], value["missing"], value["micro"]["questions"]) == ([], [], 14)
    assert set(value["chosen"]) == set(BY_ID)
    assert value["provenance"]["command"].startswith("yaofang evaluate cmb --questions ")
    assert value["system"]["shots"] == 1


def test_the_verb_scores_free_answers_of_another_system(tmp_path):
    texts = [{"id": q.id, "output": "答案：" + "、".join(sorted(q.answer, reverse=True))} for q in QUESTIONS[1:]]
    texts[0]["output"] = "WBC升高。"
    lines = "\n".join(json.dumps(text, ensure_ascii=False) for text in texts)
    done = run("cmb", "--questions", FIXTURE, "--predictions", put(tmp_path, "p.jsonl", lines), "--json")
    value = json.loads(done.stdout)
    assert (value["unparsed"], value["missing"], value["micro"]["right"]) == (["2"], ["1"], 12)
    hashes = {"questions": FIXTURE, "predictions": tmp_path / "p.jsonl"}
    assert value["sha256"] == {name: [hashlib.sha256(file.read_bytes()).hexdigest()[:12]] for name, file in hashes.items()}


def test_options_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(InputError, match="--shots and --examples go together"):
        run("cmb", "--questions", FIXTURE, "--shots", 2)
    with pytest.raises(InputError, match="answered already"):
        run("cmb", "--questions", FIXTURE, "--predictions", FIXTURE, "--model", tmp_path)


def test_the_verb_lives_beside_evaluate_with_its_own_options():
    assert run("--predictions", "sub.json").stdout == "lists of sub.json\n"
