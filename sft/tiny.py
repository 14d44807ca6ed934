"""Rebuilds the bundled model: trains its recipe, converts the weights to bfloat16, calibrates and measures it, writes its card.

    python -m yaofang.sft.tiny               (make tiny: all of it, an hour and a quarter on 2 cores)
    python -m yaofang.sft.tiny --measure     (from a run that is there already)
    python -m yaofang.sft.tiny --card        (only the card, from docs/results/quality.json)

Knows the bundled model's folder and the result files; training is `sft.train`, the figures are `eval.modes`' and
`eval.benchmark`'s.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from yaofang.data.provenance import write_result
from yaofang.decoding.calibration import FILE as CURVE
from yaofang.eval.benchmark import NAMES, quality
from yaofang.eval.modes import modes
from yaofang.glm.loading import BUNDLED, TRAINED, load_model
from yaofang.sft.recipe import TINY, load_recipe, wards
from yaofang.sft.train import train
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.files import whole_file

RESULT = Path("docs/results/quality.json")
MODES = Path("docs/results/modes.json")
LARGEST = 12_000_000
"""Bytes of weights that git may hold."""

CARD = """# The bundled tiny model

A demonstrator: a model of GLM-4's architecture with {parameters:,} parameters and its own byte-level BPE, trained from
nothing on the simulated ward of this repository. It makes every command run on a laptop in seconds. It knows the ward's
tables and nothing else: it has read no patient, no guideline and no book, and none of its output is a prescription.

| | |
|---|---|
| architecture | `{architecture}`, {layers} layers, hidden {hidden}, {heads} heads, {kv_heads} KV heads, context {context} |
| weights | {size:.1f} MB, bfloat16 safetensors |
{run}
| built with | {versions} |

## Scores

On {test_records} records of simulated patients that neither the model nor the baselines saw (ward of {ward_patients:,}
patients, seed {ward_seed}; `yaofang bench quality`), with 95% intervals by bootstrap over patients. The ceiling, the expected
Jaccard of the ward's own best list, is {ceiling:.3f}. The baselines learned from the ward's {ward_patients:,} training
patients, the model from those of the recipe above; its lists are decoded for the expected Jaccard (`--strategy expected`).

| system | Jaccard | of the ceiling | F1 | drugs a record | T1 pairs |
|---|---|---|---|---|---|
{rows}
| doctors of the ward | | | | {gold_drugs:.2f} | {gold_t1} |

{verdict} With diagnoses generated, their exact F1 is {diagnosis_f1:.3f}.

## Limits

Its scores say nothing about real patients. A record in other words than the ward's is outside what it knows.
"""


def export(run: Path, folder: Path = BUNDLED) -> None:
    """Write the run's weights in bfloat16, its tokenizer, and what says how it was trained, into the bundled folder."""
    loaded = load_model(run, device="cpu")
    loaded.model.to(torch.bfloat16).save_pretrained(folder)
    loaded.template.tokenizer.save_pretrained(folder)
    (folder / CURVE).unlink(missing_ok=True)  # another model's
    for name in (TRAINED, "run.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > LARGEST:
        raise SystemExit(f"{size:,} bytes of weights: at most {LARGEST:,} may be committed")


def measure(command: str) -> None:
    """Calibrate the bundled model, measure its ways to decode and its quality on the ward, and write the result files."""
    vocabulary = load_vocabulary()
    conflicts = load_conflicts(vocabulary)
    say = logging.getLogger("yaofang").info
    result, curve = modes(load_model(), vocabulary, conflicts, trained_on=wards(), report=say)
    curve.write(BUNDLED)
    write_result(MODES, command, result)
    write_result(RESULT, command, quality(load_model(), vocabulary, conflicts, trained_on=wards(), report=say))


def write_card(folder: Path = BUNDLED) -> None:
    """Write the card from the configuration, `run.json` and the result file."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    with whole_file(folder / "README.md") as handle:
        handle.write(CARD.format(**_facts(folder, result)))


def _facts(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    systems = result["systems"]
    gold = systems["model_given"]["gold"]
    versions = run["provenance"]["versions"]
    return {
        "parameters": load_model(folder, device="cpu").model.num_parameters(),
        "architecture": config["model_type"],
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "context": config["max_position_embeddings"],
        "size": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6,
        "run": _run(TINY, run),
        "versions": ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl")),
        "test_records": result["ward"]["test_records"],
        "ward_patients": result["ward"]["patients"],
        "ward_seed": result["ward"]["seed"],
        "ceiling": result["ceiling"]["mean"],
        "rows": "\n".join(_row(NAMES[key], value) for key, value in systems.items()),
        "gold_drugs": gold["mean_drugs"],
        "gold_t1": gold["conflicts"]["T1"]["pairs"],
        "verdict": _verdict(systems),
        "diagnosis_f1": systems["model_generated"]["diagnosis_f1"]["value"],
    }


def _run(name: str, run: dict[str, Any]) -> str:
    ((patients, seed),) = wards((name,))
    made, metrics = run["provenance"], run["metrics"]
    hours, cores = metrics["train_runtime"] / 3600, made["machine"]["cores"]
    return (
        f"| recipe `{name}` | {metrics['records']:,} records of {patients:,} simulated patients (seed {seed}, "
        f"data {run['data']}), {hours:.2f} h on {cores} cores, git {made['git']} |"
    )


def _row(name: str, value: dict[str, Any]) -> str:
    score, f1, said = value["jaccard"], value["f1"], value["predicted"]
    cells = [
        name,
        f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})",
        f"{value['share_of_ceiling']:.0%}",
        f"{f1['value']:.3f}",
        f"{said['mean_drugs']:.2f}",
        str(said["conflicts"]["T1"]["pairs"]),
    ]
    return f"| {' | '.join(cells)} |"


def _verdict(systems: dict[str, Any]) -> str:
    """The model beside TF-IDF + logistic regression and beside the strongest baseline that uses the same diagnoses."""
    model = systems["model_given"]["jaccard"]["value"]
    baselines = {key: value["jaccard"]["value"] for key, value in systems.items() if not key.startswith("model")}
    best = max(baselines, key=lambda key: baselines[key])
    return " ".join(_beside(model, NAMES[key], baselines[key]) for key in dict.fromkeys(("tfidf", best)))


def _beside(model: float, name: str, other: float) -> str:
    if model > other:
        return f"With diagnoses given it is {model - other:.3f} above {name}."
    return f"**It stays {other - model:.3f} under {name}.**"


def main(arguments: list[str] | None = None) -> None:
    """Train (or take a run), export, measure, write the card."""
    parser = argparse.ArgumentParser(prog="python -m yaofang.sft.tiny", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="take the run that is there already")
    parser.add_argument("--card", action="store_true", help="only write the card again")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not given.card and not given.measure:
        train(load_recipe(TINY), Path("runs") / TINY, resume=given.resume, command="make tiny")
    if not given.card:
        export(Path("runs") / TINY)
        measure("make tiny")
    write_card()


if __name__ == "__main__":
    main()
