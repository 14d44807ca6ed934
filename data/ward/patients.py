"""Draws patients: sex, age, diseases over one to six visits, laboratory values that agree with them. No drugs, no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from yaofang.data.ward.rules import Facts
from yaofang.data.ward.tables import Disease, Tables

GLYCAEMIA = ("hba1c", "fpg", "ppg")
VITALS = {"sbp": (128.0, 12.0), "dbp": (78.0, 8.0), "hr": (76.0, 8.0), "temp": (36.5, 0.2), "bmi": (24.5, 3.2)}
LIMITS = {"sbp": (80, 240), "dbp": (40, 140), "hr": (42, 170), "temp": (35.5, 41.0), "bmi": (14.5, 48.0)}


@dataclass(slots=True)
class Condition:
    """A disease of a patient, in the words that his doctors use for it."""

    disease: Disease
    name: str
    months: int
    """How long it was known at the first visit of the patient; 0 if found later."""
    visit: int
    """Number of the visit at which it was found; 0 if it was known before."""


@dataclass(slots=True)
class Stay:
    """One visit before anything is prescribed: what the doctor knows."""

    number: int
    date: tuple[int, int]
    team: int
    conditions: list[Condition]
    main: Condition
    unlisted: set[str]
    """Ids of diseases that are in 既往史 only."""
    facts: Facts
    measured: set[str]
    """Ids of the laboratory values that are in the record."""
    length: float
    """How much its doctor writes; 1 is usual."""
    months_in: int
    """Months since the first visit."""


@dataclass(slots=True)
class Patient:
    """A patient with his visits in order."""

    number: int
    sex: str
    birth: tuple[int, int]
    ethnicity: str
    stays: list[Stay] = field(default_factory=list)


def pick(weights: Sequence[float], rng: np.random.Generator) -> int:
    """Index drawn in proportion to the weights; much faster than Generator.choice for short lists."""
    left = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return max(i for i, weight in enumerate(weights) if weight > 0)


def draw_patient(number: int, tables: Tables, rng: np.random.Generator) -> Patient:
    """One patient with all his visits."""
    ward = tables.ward
    age = float(np.clip(rng.normal(ward["age"]["mean"], ward["age"]["sd"]), ward["age"]["low"], ward["age"]["high"]))
    sex = "男" if rng.random() < ward["male"] else "女"
    first = (int(rng.integers(ward["first_visit"][0], ward["first_visit"][1] + 1)), int(rng.integers(1, 13)))
    born = first[0] * 12 + first[1] - 1 - round(age * 12)
    nations = ward["ethnicity"]
    patient = Patient(number, sex, (born // 12, born % 12 + 1), list(nations)[pick(list(nations.values()), rng)])
    conditions = _first_conditions(tables, sex, age, rng)
    latent = {lab: rng.normal() for lab in (*tables.labs, *VITALS)}
    team = int(rng.integers(len(ward["teams"])))
    months = 0
    for visit in range(1, pick(ward["visits"], rng) + 2):
        if visit > 1:
            months += int(rng.integers(ward["gap_months"][0], ward["gap_months"][1] + 1))
            conditions = _later_conditions(tables, sex, age + months / 12, conditions, visit, rng)
            team = team if rng.random() < ward["team_stays"] else int(rng.integers(len(ward["teams"])))
        patient.stays.append(_stay(tables, patient, conditions, visit, months, first, team, latent, rng))
    return patient


def _chance(disease: Disease, base: float, sex: str, present: dict[str, Condition]) -> float:
    """Chance of a disease in view of sex and of the diseases already there; 0 where they exclude it."""
    if base <= 0 or any(other in present for other in disease.excludes):
        return 0.0
    if disease.requires and not any(other in present for other in disease.requires):
        return 0.0
    base = min(base, 0.98)
    odds = base / (1 - base) * disease.sex[sex]
    for other, factor in disease.links.items():
        if other in present:
            odds *= factor
    return odds / (1 + odds)


def _age_class(age: float) -> int:
    return 0 if age < 45 else 1 if age < 60 else 2 if age < 75 else 3


def _first_conditions(tables: Tables, sex: str, age: float, rng: np.random.Generator) -> list[Condition]:
    while True:
        found: dict[str, Condition] = {}
        for disease in tables.diseases:
            if rng.random() < _chance(disease, disease.prevalence[_age_class(age)], sex, found):
                known = disease.chronic and rng.random() < tables.ward["known"]
                months = min(int(rng.gamma(1.6, 55)) + 1, round((age - 14) * 12)) if known else 0
                found[disease.id] = Condition(disease, _name(disease, rng), max(months, 0), 0 if known else 1)
        if any(condition.disease.complaints for condition in found.values()):
            return list(found.values())


def _later_conditions(
    tables: Tables, sex: str, age: float, before: list[Condition], visit: int, rng: np.random.Generator
) -> list[Condition]:
    """Chronic diseases stay; others go, and new ones appear with their onset."""
    present = {c.disease.id: c for c in before if c.disease.chronic}
    for disease in tables.diseases:
        if disease.id in present:
            continue
        base = disease.onset if disease.chronic else max(disease.onset, disease.prevalence[_age_class(age)])
        if disease.prevalence[_age_class(age)] > 0 and rng.random() < _chance(disease, base, sex, present):
            present[disease.id] = Condition(disease, _name(disease, rng), 0, visit)
    if not any(condition.disease.complaints for condition in present.values()):
        return before
    for condition in present.values():
        if rng.random() < 0.12:
            condition.name = _name(condition.disease, rng)
    return list(present.values())


def _name(disease: Disease, rng: np.random.Generator) -> str:
    return list(disease.names)[pick(list(disease.names.values()), rng)]


def _stay(
    tables: Tables,
    patient: Patient,
    conditions: list[Condition],
    visit: int,
    months: int,
    first: tuple[int, int],
    team: int,
    latent: dict[str, float],
    rng: np.random.Generator,
) -> Stay:
    date = divmod(first[0] * 12 + first[1] - 1 + months, 12)
    age = (date[0] * 12 + date[1] - patient.birth[0] * 12 - patient.birth[1] + 1) // 12
    numbers = draw_numbers(tables, [c.disease for c in conditions], patient.sex, float(age), latent, rng)
    length = _length(tables, rng)
    measured = _measured(tables, conditions, patient.sex, length, rng)
    facts = Facts(patient.sex, numbers, {c.disease.id for c in conditions})
    seen = {i: value for i, value in numbers.items() if i not in tables.labs or i in measured}
    visible = Facts(patient.sex, seen, facts.present)
    facts.present |= {i for i, when in tables.findings.items() if when.holds(visible)}
    main = _main(conditions, visit, rng)
    unlisted = {
        c.disease.id
        for c in conditions
        if c is not main and c.disease.chronic and c.disease.past and rng.random() < tables.ward["unlisted"]
    }
    # Names are copied: a later visit may word the same disease otherwise.
    copies = [Condition(c.disease, c.name, c.months, c.visit) for c in conditions]
    return Stay(
        number=visit,
        date=(date[0], date[1] + 1),
        team=team,
        conditions=copies,
        main=copies[conditions.index(main)],
        unlisted=unlisted,
        facts=facts,
        measured=measured,
        length=length,
        months_in=months,
    )


def _length(tables: Tables, rng: np.random.Generator) -> float:
    settings = tables.wording["length"]
    tail = 1.0 + rng.gamma(1.0, settings["tail"]) if rng.random() < settings["tail_chance"] else 1.0
    return float(np.exp(rng.normal(0, settings["sigma"])) * tail)


def _main(conditions: list[Condition], visit: int, rng: np.random.Generator) -> Condition:
    """The disease that the patient comes for: rather an acute or a new one, rather an early row of the table."""
    able = [c for c in conditions if c.disease.complaints]
    weights = [
        (4.0 if not c.disease.chronic else 3.0 if c.visit == visit else 1.0) * (6.0 if place == 0 else 1.0)
        for place, c in enumerate(able)
    ]
    return able[pick(weights, rng)]


def _measured(tables: Tables, conditions: list[Condition], sex: str, length: float, rng: np.random.Generator) -> set[str]:
    wanted = {tables.labs[lab].panel for c in conditions for lab in c.disease.labs}
    panels = set()
    for panel, settings in tables.wording["panels"].items():
        chance = max(settings["chance"], settings.get("wanted", 0.93)) if panel in wanted else settings["chance"]
        if settings.get("sex", sex) == sex and rng.random() < chance * min(1.0, length**0.5):
            panels.add(panel)
    return {i for i, lab in tables.labs.items() if lab.panel in panels and rng.random() < 0.95}


def draw_numbers(
    tables: Tables,
    diseases: Sequence[Disease],
    sex: str,
    age: float,
    latent: dict[str, float],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Laboratory values and vital signs of one visit, as written (rounded), with `age`."""
    memory = tables.ward["lab_memory"]
    noise = dict(zip(latent, rng.normal(size=len(latent)), strict=True))
    shared = tables.ward["glycaemia"]
    z = {i: memory * latent[i] + (1 - memory**2) ** 0.5 * noise[i] for i in latent}
    for value in GLYCAEMIA[1:]:
        z[value] = shared * z["hba1c"] + (1 - shared**2) ** 0.5 * z[value]
    numbers = {"age": age}
    for i, lab in tables.labs.items():
        moved = [d.labs[i] for d in diseases if i in d.labs]
        mean, sd = _furthest(moved, lab.mean) if moved else (_normal(lab.mean, i, sex, age), lab.sd)
        numbers[i] = round(float(np.clip(mean + sd * z[i], *lab.range)), lab.decimals)
    for i, (mean, sd) in VITALS.items():
        moved = [d.vitals[i] for d in diseases if i in d.vitals]
        mean, sd = _furthest(moved, mean) if moved else (mean, sd)
        numbers[i] = round(float(np.clip(mean + sd * z[i], *LIMITS[i])), 1 if i in ("temp", "bmi") else 0)
    return _agreeing(numbers, tables, sex, age)


def _furthest(moved: list[tuple[float, float]], mean: float) -> tuple[float, float]:
    """Of several diseases that move a value, the one that moves it most."""
    return max(moved, key=lambda pair: abs(pair[0] - mean))


def _normal(mean: float, lab: str, sex: str, age: float) -> float:
    if lab == "egfr":
        return mean - 0.55 * (age - 55)
    if lab == "testosterone":
        return 15.0 if sex == "男" else 0.9
    if lab in ("hb", "ua", "cr"):
        return mean * (1.05 if sex == "男" else 0.95)
    return mean


def _agreeing(numbers: dict[str, float], tables: Tables, sex: str, age: float) -> dict[str, float]:
    """Creatinine follows the eGFR (CKD-EPI 2021 turned round), total cholesterol its parts."""
    if {"cr", "egfr"} <= set(numbers):
        most = 142 * 0.9938**age * (1.012 if sex == "女" else 1.0)
        numbers["egfr"] = round(min(numbers["egfr"], most * 1.15), 1)
        kappa, alpha = (61.9, -0.241) if sex == "女" else (79.6, -0.302)
        ratio = numbers["egfr"] / most
        scale = ratio ** (1 / -1.2) if ratio < 1 else ratio ** (1 / alpha)
        numbers["cr"] = round(kappa * scale, tables.labs["cr"].decimals)
    if {"tc", "ldl", "hdl", "tg"} <= set(numbers):
        numbers["tc"] = round(numbers["ldl"] + numbers["hdl"] + 0.42 * min(numbers["tg"], 8.0) + 0.15, 2)
    numbers["dbp"] = min(numbers["dbp"], numbers["sbp"] - 18)
    return numbers
