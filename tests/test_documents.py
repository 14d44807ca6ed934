"""The commands that the documents print can be typed, and their figures are those of the result files."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from yaofang.app.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("glm/tiny/*.md")])
PROMISED = """
yaofang predict --records shanghai_t1dm.jsonl --out sub.json
yaofang predict --records FILE --out SUB --model DIR --model DIR2 --vocab LIST --diagnoses auto --details D.jsonl
yaofang predict --records FILE --out SUB --batch-size 4 --resume --skip-bad
yaofang predict --records FILE --out SUB --diagnoses given
yaofang predict --records FILE --out SUB --diagnoses generated --device cpu --dtype float32 --quantize 4bit
torchrun --nproc-per-node 2 -m yaofang.app.predict --records FILE --out SUB
yaofang show D.jsonl --id 2-1 --json
yaofang env --json
yaofang data split --records FILE --by patient --folds 5 --out DIR
yaofang data stats --records FILE --tokenizer DIR --json
yaofang data simulate --patients 100 --seed 1 --out FILE
yaofang data check-submission SUB --records FILE --vocab LIST --json
yaofang evaluate --records GOLD --predictions SUB --vocab LIST --json
yaofang evaluate --predictions SUB --gold FILE.json --level generic --records FILE
yaofang baseline most-frequent --train F --records F --out SUB --json
yaofang baseline tfidf --train F --records F --out SUB
yaofang evaluate --records GOLD --predictions SUB --skip-bad
yaofang baseline most-frequent --train F --records F --out SUB --skip-bad
yaofang evaluate --records GOLD --predictions SUB --level atc4 --train TRAIN --compare SUB2 --compare-details D2.jsonl --link
yaofang evaluate --records GOLD --predictions SUB --counts DIR --details D.jsonl --report X.html --card X.md --out X.json
yaofang evaluate cmb --questions F --answers F --model DIR --shots 3 --examples F --out RESULT.json
yaofang baseline last-visit --train F --records F --known F --out SUB
yaofang baseline neighbours --train F --records F --out SUB
yaofang baseline trees --train F --records F --out SUB
yaofang inspect --records FILE --predictions D.jsonl --out report.html
yaofang merge --model RUN --out DIR --dtype bfloat16 --base DIR --records FILE --max-shard-size 5GB --json
yaofang pretrain --config tiny-pretrain --set data.corpus=[texts] --out RUN --resume --sequence-parallel-size 2
yaofang sft --config glm4-9b-lora-2x48gb --out RUN --resume --sequence-parallel-size 2
yaofang plan --config glm4-9b-lora-2x48gb --cards 2 --memory-gb 48 --json
yaofang bench training --resume --seeds 3 --jobs 2
yaofang bench training --speed --device cuda
yaofang inspect --records FILE --predictions D.jsonl --gold FILE.json --out report.html
yaofang inspect --records FILE --record 2-1 --counterfactuals --put-in 痛风 --model DIR --limit 20
yaofang bench inspection --records 100 --out docs/results/inspection.json --json
yaofang sft --config tiny
yaofang sft --config glm4-9b-lora --set training.epochs=1 --set data.max_length=1024 --print-config
yaofang vocab list --json
yaofang vocab conflicts 阿托伐他汀钙片 克拉霉素 --json
yaofang vocab conflicts 华法林 阿司匹林肠溶片 胺碘酮
yaofang vocab conflicts 华法林 胺碘酮 --ddinter DIR --interactions FILE.csv --evidence FILE.json --json
yaofang vocab check LIST --out REPORT.json
yaofang vocab match "阿托伐他汀钙片20mg(立普妥)" "二甲双胍0.5g tid，阿卡波糖 50mg" --json
yaofang vocab matrix --out A.npz
yaofang vocab pairs --out pairs.csv --json
yaofang vocab evidence --records TRAIN.jsonl --out evidence.json --json
yaofang predict --records FILE --out SUB --mask-patient
yaofang bench vocabulary --out docs/results/vocabulary.json
yaofang predict --records FILE --out SUB --formulary LIST --ban BANS.json --min-drugs 2 --max-drugs 12
yaofang predict --records FILE --out SUB --strategy expected --samples 24 --metric f1 --seed 1
yaofang predict --records FILE --out SUB --diagnosis-list ICD.txt --t2-penalty 1 --prior-correction 0.3
yaofang calibrate --records VALID.jsonl --model DIR --json
yaofang bench decoding --tokenizer DIR --out docs/results/decoding.json
yaofang bench modes --out docs/results/modes.json --json
yaofang bench quality --out docs/results/quality.json --json
yaofang bench ward --patients 1910 --seed 1 --tokenizer DIR --out docs/results/ward.json --json
"""
"""Commands of the project's plan; later ones are added as they are made."""


def commands(text: str) -> list[str]:
    """The lines that start `yaofang` or `torchrun`, continuation lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    starts = re.compile(r"^\s*(?:\$ )?((?:\.venv/bin/)?(?:yaofang|torchrun) .*)$")
    return [found[1] for line in lines if (found := starts.match(line))]


def words(command: str) -> list[str]:
    """The arguments after `yaofang`, comments and redirections left out."""
    found = shlex.split(command, comments=True)
    for mark in ("|", ">", "&&"):
        if mark in found:
            found = found[: found.index(mark)]
    if found[0] == "torchrun":
        module, *rest = found[found.index("-m") + 1 :]
        return rest if module == "yaofang.app.cli" else [module.rpartition(".")[2], *rest]
    return found[1:]


def parse(arguments: list[str]) -> str:
    """Parse a command line through all its verbs and run nothing; the last verb. Raises a usage error."""
    command: Any = typer.main.get_command(app)
    context: Any = None
    while arguments != ["--help"]:
        context = command.make_context(command.name, arguments, parent=context)
        if not hasattr(command, "commands"):
            return str(command.name)
        rest = [*context._protected_args, *context.args]
        if not rest and command.invoke_without_command:
            return str(command.name)
        _, command, arguments = command.resolve_command(context, rest)
    return "--help"


def in_documents() -> list[tuple[str, str]]:
    """(document, command) of code blocks, fenced or indented, and of the modules' docstrings."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        indented = "\n".join(line for line in text.splitlines() if line.startswith("    "))
        for block in [*re.findall(r"```(?:sh|bash|console)?\n(.*?)```", text, re.DOTALL), indented]:
            found += [(document.relative_to(ROOT).as_posix(), command) for command in commands(block)]
    parts = ("app", "eval", "inspection", "reports", "sft", "data", "decoding")
    for module in sorted(path for part in parts for path in (ROOT / part).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        found += [(module.relative_to(ROOT).as_posix(), command) for command in commands(docstring) if "[" not in command]
    return found


@pytest.mark.parametrize(("document", "command"), in_documents())
def test_a_command_printed_in_a_document_parses(document: str, command: str) -> None:
    assert parse(words(command)) in words(command)


@pytest.mark.parametrize("command", commands(PROMISED))
def test_a_command_of_the_plan_parses(command: str) -> None:
    assert parse(words(command)) in words(command)


@pytest.mark.parametrize("command", ["yaofang predict --recrods F --out S", "yaofang data nothing", "yaofang env extra"])
def test_the_parser_of_these_tests_refuses_a_wrong_command(command: str) -> None:
    with pytest.raises(Exception, match=r"No such|unexpected extra"):
        parse(words(command))


def test_the_readme_prints_commands_of_every_step_of_the_work() -> None:
    verbs = {words(command)[0] for document, command in in_documents() if document == "README.md"}
    assert {"predict", "evaluate", "sft", "data", "baseline", "show", "env", "vocab"} <= verbs


def test_every_make_target_that_a_document_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"(?:^|`)make ([a-z]+)", document.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets
    assert {"demo", "test", "nightly", "check", "types", "tiny"} <= targets


def test_every_link_to_a_file_in_a_document_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


MARK = re.compile(r"(?<!`)<!-- result: (\S+) (\S+) -->(.*?)<!-- -->")


def wrong_figures(text: str, results: Path) -> list[str]:
    """Marked figures that differ from their result file when rounded as they are printed (`%` counts in hundredths)."""
    wrong = []
    for file, key, shown in MARK.findall(text):
        value: Any = json.loads((results / file).read_text(encoding="utf-8"))
        for name in key.split("."):
            value = value[int(name)] if isinstance(value, list) else value[name]
        if shown.strip() != printed(value, shown.strip()):
            wrong.append(f"{file} {key}: {shown} is {value}")
    return wrong


def printed(value: Any, like: str) -> str:
    """`value` with the decimals, the percent sign, the separators and the leading zero of `like`."""
    if not isinstance(value, int | float):
        return str(value)
    percent = "%" if like.endswith("%") else ""
    digits = like.rstrip("%").partition(".")[2]
    found = f"{value * 100 if percent else value:{',' if ',' in like else ''}.{len(digits)}f}"
    return (found[1:] if like.startswith(".") else found) + percent


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_a_marked_figure_is_that_of_its_result_file(document: Path) -> None:
    assert wrong_figures(document.read_text(encoding="utf-8"), ROOT / "docs" / "results") == []


def test_a_figure_that_differs_from_its_result_file_is_caught(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": {"y": 0.51234}, "l": [1234]}', encoding="utf-8")
    right = {"x.y": ("0.512", "51.2%", ".51"), "l.0": ("1,234", "1234")}
    marked = " ".join(f"<!-- result: a.json {key} -->{shown}<!-- -->" for key, all_ in right.items() for shown in all_)
    assert wrong_figures(marked, tmp_path) == []
    assert len(wrong_figures("<!-- result: a.json x.y -->0.513<!-- -->", tmp_path)) == 1
