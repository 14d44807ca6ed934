"""The verb `bench`: collects the benchmarks that lie beside what they measure.

yaofang bench quality --out docs/results/quality.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from yaofang.app.bench_training import training
from yaofang.app.tables import say, show

app = typer.Typer(help="Measure: every figure of the docs comes from one of these.", no_args_is_help=True)
app.command()(training)


@app.command()
def quality(
    model: Annotated[Path | None, typer.Option("--model", help="Model folder; the bundled one if not given.")] = None,
    patients: Annotated[int, typer.Option("--patients", help="Training patients of the ward.")] = 1910,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the ward; not the one the model was trained on.")] = 1,
    same: Annotated[bool, typer.Option("--same", help="Also fit the regression on the bundled model's patients.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Result file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Score a model beside the baselines and the ceiling, on unseen patients of the simulated ward."""
    from yaofang.data.provenance import write_result
    from yaofang.eval import benchmark
    from yaofang.glm.loading import load_model
    from yaofang.sft.recipe import wards
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary
    from yaofang.vocab.files import check_place

    check_place(out)
    vocabulary = load_vocabulary()
    result = benchmark.quality(
        load_model(model),
        vocabulary,
        load_conflicts(vocabulary),
        patients=patients,
        seed=seed,
        trained_on=wards() if model is None else (),
        same=same,
        report=say,
    )
    if out is not None:
        write_result(out, "yaofang " + " ".join(sys.argv[1:]), result)
    rows = [
        (
            benchmark.NAMES[key],
            value["jaccard"]["value"],
            value["share_of_ceiling"],
            value["f1"]["value"],
            value["board"]["value"],
            value["predicted"]["mean_drugs"],
            value["predicted"]["conflicts"]["T1"]["pairs"],
            value["predicted"]["outside"],
        )
        for key, value in result["systems"].items()
    ]
    columns = ("system", "Jaccard", "of ceiling", "F1", "board", "drugs", "T1 pairs", "outside")
    title = f"Simulated ward, {result['ward']['test_records']} unseen records, ceiling {result['ceiling']['mean']:.3f}"
    show(title, columns, rows, as_json=as_json, data=result)


@app.command()
def ward(
    patients: Annotated[int, typer.Option("--patients", help="Training patients of the ward.")] = 1910,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the ward.")] = 1,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder with the tokenizer.json that counts tokens.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Result file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure the simulated ward: distributions, broken rules, ceiling, and two baselines on its test board."""
    from tokenizers import Tokenizer

    from yaofang.data.provenance import write_result
    from yaofang.eval import benchmark
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary
    from yaofang.vocab.files import check_place

    check_place(out)
    counter = None if tokenizer is None else Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    count = None if counter is None else lambda text: len(counter.encode(text, add_special_tokens=False).ids)
    vocabulary = load_vocabulary()
    result = benchmark.ward(vocabulary, load_conflicts(vocabulary), patients=patients, seed=seed, count=count, report=say)
    if out is not None:
        command = f"yaofang bench ward --patients {patients} --seed {seed}" + (" --tokenizer GLM-4" if tokenizer else "")
        write_result(out, command, result)
    show(f"Simulated ward, tables {result['tables']}", ("figure", "value"), _figures(result), as_json=as_json, data=result)


def _figures(result: dict[str, Any]) -> list[tuple[str, Any]]:
    labels, drugs = result["labels"], result["drugs"]
    rows = [
        ("records, training / test", f"{result['records']['train']:,} / {result['records']['test']:,}"),
        ("drugs a record, mean (range)", f"{drugs['mean']:.2f} ({drugs['min']:.0f} to {drugs['max']:.0f})"),
        ("labels in training", labels["seen"]),
        *(
            (f"{part}: labels, mean count", f"{labels[part]['labels']}, {labels[part]['mean']}")
            for part in ("head", "middle", "tail")
        ),
        ("labels of the test board unseen in training", result["unseen_in_test"]),
        *((f"records with a broken rule, {kind}", f"{share:.2%}") for kind, share in result["rules_broken"].items()),
        ("ceiling, Jaccard", result["ceiling"]["mean"]),
        *((f"{key}, Jaccard", value["jaccard"]["value"]) for key, value in result["baselines"].items()),
    ]
    if "tokens" in result:
        tokens = result["tokens"]
        rows.append(
            ("tokens a record, P50 / P90 / longest", f"{tokens['p50']:.0f} / {tokens['p90']:.0f} / {tokens['max']:.0f}")
        )
    return rows


@app.command()
def vocabulary(
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds of each time; the median counts.")] = 5,
    out: Annotated[Path | None, typer.Option("--out", help="Result file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure the vocabulary: sizes of the tables, building and loading the conflicts, matching 10,000 names."""
    from yaofang.data.provenance import write_result
    from yaofang.vocab import benchmark
    from yaofang.vocab.files import check_place

    check_place(out)
    result = benchmark.measure(rounds)
    if out is not None:
        write_result(out, f"yaofang bench vocabulary --rounds {rounds}", result)
    rows = [(key, value) for key, value in result.items() if not isinstance(value, dict)]
    rows += [(f"{part}: {key}", value) for part in ("lexicon", "tables") for key, value in result[part].items()]
    show("Vocabulary", ("figure", "value"), rows, as_json=as_json, data=result)


@app.command()
def modes(
    model: Annotated[Path | None, typer.Option("--model", help="Model or run folder. Default: the bundled model.")] = None,
    patients: Annotated[int, typer.Option("--patients", help="Patients for calibration and choice, half each.")] = 240,
    ward_patients: Annotated[int, typer.Option("--ward-patients", help="Training patients of the test board's ward.")] = 1910,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Lists drawn a record.")] = 24,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Records at once.")] = 8,
    keep: Annotated[bool, typer.Option("--keep-calibration", help="Write the curve into the model's folder.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Result file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Compare greedy, beam and expected-metric decoding on the simulated ward, with three sets of patients."""
    from yaofang.data.provenance import write_result
    from yaofang.eval.modes import modes as compare
    from yaofang.glm.loading import BUNDLED, load_model
    from yaofang.sft.recipe import wards
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary
    from yaofang.vocab.files import check_place

    check_place(out)
    vocabulary = load_vocabulary()
    result, curve = compare(
        load_model(model),
        vocabulary,
        load_conflicts(vocabulary),
        patients=patients,
        ward_patients=ward_patients,
        samples=samples,
        batch_size=batch_size,
        trained_on=wards() if model is None else (),
        report=say,
    )
    if keep:
        say(f"{curve.write(model or BUNDLED)}: calibration {curve.version}")
    if out is not None:
        write_result(out, f"yaofang bench modes --patients {patients} --samples {samples}", result)
    rows = [
        (
            way,
            value["jaccard"]["value"],
            f"{value['jaccard']['low']:.3f} to {value['jaccard']['high']:.3f}",
            value["f1"]["value"],
            value["drugs"],
            value["seconds_a_record"],
            value["t1_pairs"],
            _less(result["test"]["less_greedy"].get(way)),
        )
        for way, value in result["test"]["ways"].items()
    ]
    columns = ("way", "Jaccard", "95% interval", "F1", "drugs", "s a record", "T1 pairs", "Jaccard less greedy's")
    title = f"Simulated ward, {result['sets']['test']['records']} records of unseen patients, diagnoses given"
    show(title, columns, rows, as_json=as_json, data=result, notes=(f"chosen on other patients: {result['choice']['best']}",))


@app.command()
def plan(
    out: Annotated[Path, typer.Option("--out", help="Result file.")] = Path("docs/results/plan.json"),
    only: Annotated[list[str] | None, typer.Option("--only", help="Names of cases. Default: all.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the result file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the lines.")] = False,
) -> None:
    """Compare the memory that `yaofang plan` predicts with measured peaks of small trainings (CPU)."""
    from yaofang.app.tables import print_json
    from yaofang.sft.memory.benchmark import measure
    from yaofang.vocab.files import check_place

    check_place(out)
    result = measure(only or (), say, out=out, resume=resume)
    if as_json:
        print_json(result)


def _less(value: dict[str, Any] | None) -> str:
    return "-" if value is None else "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**value["jaccard"])


@app.command()
def decoding(
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of a GLM-4 tokenizer. Default: the bundled model's.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=5, help="Rounds of each time; the median counts.")] = 5,
    out: Annotated[Path | None, typer.Option("--out", help="Result file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Time the constraint beside other libraries, jump-forward, scoring of all drugs, and whole prediction."""
    from yaofang.data.provenance import write_result
    from yaofang.decoding import benchmark, benchmark_model
    from yaofang.vocab.files import check_place

    check_place(out)
    say("prediction, jump-forward, scoring")
    more = benchmark_model.measure(tokenizer, rounds=rounds)
    say("constraint and peers")
    result = benchmark.measure(tokenizer, rounds=rounds)
    result = {**result, **more, "what_it_is": {**result["what_it_is"], **more["what_it_is"]}}
    if out is not None:
        write_result(out, f"yaofang bench decoding --rounds {rounds}" + (" --tokenizer GLM-4" if tokenizer else ""), result)
    rows = [(key, *(value.get(str(count)) for count in benchmark.ROWS)) for key, value in _by_rows(result)]
    show("Decoding, by rows", ("figure", *map(str, benchmark.ROWS)), rows, as_json=as_json, data=result)
    if not as_json:
        plain = [(key, value) for key, value in more.items() if isinstance(value, int | float)]
        plain += [
            (f"{key}: {part}", part_value)
            for key, value in more.items()
            if isinstance(value, dict) and key not in ("what_it_is", "time_goes", "records_per_second")
            for part, part_value in value.items()
        ]
        show("Decoding with a model", ("figure", "value"), plain, as_json=False, data=result)


def _by_rows(result: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    tables = [("state_us_per_row", result["state_us_per_row"])]
    tables += [(f"processor_us {name}", value) for name, value in result["processor_us"].items() if value]
    return tables + [(key, value) for key, value in result.items() if key.startswith("vs_") and value]


@app.command()
def inspection(
    records: Annotated[int, typer.Option("--records", min=1, help="Records of the test board.")] = 100,
    out: Annotated[Path | None, typer.Option("--out", help="Result file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure how often the top evidence of a drug is its true cause on the simulated ward, and the time of a record."""
    from yaofang.data.provenance import write_result
    from yaofang.glm.loading import load_model
    from yaofang.inspection.benchmark import measure
    from yaofang.sft.recipe import wards
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary
    from yaofang.vocab.files import check_place

    check_place(out)
    vocabulary = load_vocabulary()
    result = measure(load_model(), vocabulary, load_conflicts(vocabulary), records=records, trained_on=wards(), report=say)
    if out is not None:
        write_result(out, f"yaofang bench inspection --records {records}", result)
    rows = [
        (key, value["value"], f"{value['low']:.3f} to {value['high']:.3f}", result["top_is_span"].get(key, {}).get("value"))
        for key, value in result["top_is_cause"].items()
        if isinstance(value, dict)
    ]
    columns = ("ranking", "top piece states the cause", "95% interval", "top piece is the truth file's span")
    notes = (f"{result['drugs']}", f"one record: {result['time']['median']:.2f} s")
    show("Faithfulness on the simulated ward", columns, rows, as_json=as_json, data=result, notes=notes)
