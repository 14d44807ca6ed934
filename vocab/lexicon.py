"""Every generic that the tables know, with its ingredients and ATC code by route, and every way of writing that leads to it.

Holds the drugs of the bundled list and those of `default/lexicon/`: what Chinese hospitals prescribe beyond that list, and
Chinese patent medicines with the western ingredients and the herbs of known interactions inside. Knows names as they are
written in the tables; what surrounds a name in a note is `naming`'s, damaged names are `damaged`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

from yaofang.vocab.drugs import ATC, Drug, Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import read_table, sha256_of
from yaofang.vocab.naming import ROUTES, clean, normalise, without_form

FOLDER = Path(__file__).parent / "default"
_LOADING = Lock()
AREAS = (
    "digestive_metabolic_blood",
    "cardio_endocrine_musculoskeletal",
    "infection_oncology_immune",
    "neuro_respiratory_eye_skin",
)
"""Tables of `default/lexicon/`: one row a generic and route."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A generic by one route."""

    generic: str
    ingredients: tuple[str, ...]
    """INN in lower case; of a Chinese patent medicine its western ingredients."""
    atc: str | None
    """As in `Drug.atc`."""
    route: str
    kind: str
    """`drug` or `patent_medicine`."""


@dataclass(frozen=True)
class Lexicon:
    """Generics and their spellings."""

    entries: Mapping[str, tuple[Entry, ...]]
    """Generic -> one entry a route."""
    spellings: Mapping[str, frozenset[str]]
    """A way of writing -> the generics it may mean; more than one is ambiguous."""
    brand_routes: Mapping[str, str]
    """Brand -> the route of the row that it stands in: 普米克令舒 is inhaled, whatever else budesonide is."""
    herbs: Mapping[str, tuple[str, ...]]
    """Chinese patent medicine -> substances of the herbs inside that interact or are toxic (`herbs.tsv`, column inn)."""
    version: str
    """SHA-256, in hex, of the files as they were when it was read."""
    unknown_formula: frozenset[str]
    """Chinese patent medicines whose formula is not known here, or is secret: no data."""

    def count(self) -> dict[str, int]:
        """Number of generics by kind, of spellings, and of drugs with a provisional class or no class."""
        first = [entries[0] for entries in self.entries.values()]
        drugs = [entry for entry in first if entry.kind == "drug"]
        return {
            "drug": len(drugs),
            "patent_medicine": len(first) - len(drugs),
            "spellings": len(self.spellings),
            "provisional_class": sum(bool(entry.atc and entry.atc.startswith("~")) for entry in drugs),
            "no_class": sum(entry.atc is None for entry in drugs),
        }


def files_version() -> str:
    """SHA-256, in hex, of the lexicon's files as they are now."""
    return sha256_of(FOLDER / "drugs.tsv", FOLDER / "aliases.tsv", *sorted((FOLDER / "lexicon").glob("*.tsv")))


def load_lexicon() -> Lexicon:
    """The bundled list and the tables of `default/lexicon/` together. Raises InputError that names file, line and field."""
    with _LOADING:  # or each of several threads would read them
        return _lexicon()


def forget_lexicon() -> None:
    """The tables are read again when they are asked for next."""
    _lexicon.cache_clear()


@cache
def _lexicon() -> Lexicon:
    version = files_version()
    bundled = load_vocabulary()
    entries: dict[str, dict[str, Entry]] = {}
    for entry in (*_bundled(bundled), *_areas(), *_patent_medicines()):
        entries.setdefault(entry.generic, {}).setdefault(entry.route, entry)
    spellings = _spellings([bundled_keys(bundled), _names(entries), ({}, _without_forms(bundled)), ({}, _inns(entries))])
    herbs = dict(_herbs_of())
    return Lexicon(
        {name: tuple(routes.values()) for name, routes in entries.items()},
        spellings,
        _brand_routes(),
        {name: found for name, found in herbs.items() if found},
        version,
        frozenset(name for name, found in herbs.items() if found is None),
    )


def bundled_keys(vocabulary: Vocabulary) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Ways of writing a vocabulary's drugs: in full (generic, label), and what is left of a label without form and salt."""
    full: dict[str, set[str]] = {}
    bare: dict[str, set[str]] = {}
    for drug in vocabulary:
        if drug.label in vocabulary.unlinked:
            full.setdefault(drug.label, set()).add(drug.generic)
            continue
        for key in (drug.generic, drug.label, clean(drug.label).text):
            full.setdefault(key, set()).add(drug.generic)
        if drug.generic == drug.label:
            continue  # the form belongs to the name (甲状腺片, 逍遥丸): without it another thing is meant
        for key in (without_form(drug.label), normalise(drug.label)):
            bare.setdefault(key, set()).add(drug.generic)
    return full, bare


def one_meaning(full: Mapping[str, set[str]], bare: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    """A name written in full outranks what is left of another name: 碳酸钙 is itself, whatever a label shrinks to."""
    return {key: frozenset(full.get(key) or bare[key]) for key in full.keys() | bare.keys() if key}


@cache
def aliases() -> dict[str, str]:
    """Brand names, older names and other spellings of the bundled list's generics, each with its generic."""
    return {row["alias"]: row["generic"] for _, row in read_table(FOLDER / "aliases.tsv")}


def _spellings(parts: Iterable[tuple[dict[str, set[str]], dict[str, set[str]]]]) -> dict[str, frozenset[str]]:
    full: dict[str, set[str]] = {alias: {generic} for alias, generic in aliases().items()}
    bare: dict[str, set[str]] = {}
    for more_full, more_bare in parts:
        for into, found in ((full, more_full), (bare, more_bare)):
            for key, generics in found.items():
                into.setdefault(key, set()).update(generics)
    return one_meaning(full, bare)


def _bundled(vocabulary: Vocabulary) -> Iterator[Entry]:
    for drug in vocabulary:
        yield Entry(drug.generic, drug.ingredients, drug.atc, drug.route, drug.kind)


def _areas() -> Iterator[Entry]:
    for area in AREAS:
        file = FOLDER / "lexicon" / f"{area}.tsv"
        for line, row in read_table(file):
            _check(file, line, row)
            ingredients = _cells(row["ingredients"], "+")
            yield Entry(row["generic"], ingredients, None if row["atc"] == "-" else row["atc"], row["route"], "drug")


def _check(file: Path, line: int, row: dict[str, str]) -> None:
    for field, good in (("route", row["route"] in ROUTES), ("atc", row["atc"] == "-" or ATC.fullmatch(row["atc"]))):
        if not good:
            raise InputError(f"{row[field]!r} is no {field}", file=file, line=line, field=field, way_out="Correct this row.")


def _patent_medicines() -> Iterator[Entry]:
    for _, row in read_table(FOLDER / "lexicon" / "patent_medicines.tsv"):
        yield Entry(row["name"], _cells(row["western_ingredients"], "+"), None, row["route"], "patent_medicine")


def _herbs_of() -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """(patent medicine, substances of its herbs); None where the formula is not known."""
    inn = {row["herb"]: row["inn"] for _, row in read_table(FOLDER / "lexicon" / "herbs.tsv")}
    for name, key in (("patent_medicines.tsv", "name"), ("herbs_in_list.tsv", "generic")):
        file = FOLDER / "lexicon" / name
        for line, row in read_table(file):
            herbs = _cells(row["herbs"], "+")
            unknown = [herb for herb in herbs if herb not in inn]
            if unknown:
                way_out = "Write a herb of herbs.tsv."
                raise InputError(f"{unknown[0]!r} is not in herbs.tsv", file=file, line=line, field="herbs", way_out=way_out)
            yield row[key], None if row["herbs"] == "?" else tuple(dict.fromkeys(inn[herb] for herb in herbs))


def _inns(entries: Mapping[str, Mapping[str, Entry]]) -> dict[str, set[str]]:
    """METFORMIN for 二甲双胍: the INN, in capitals as `clean` leaves Latin letters, where it is one generic alone."""
    found: dict[str, set[str]] = {}
    for generic in entries:
        entry = next(iter(entries[generic].values()))
        if entry.kind == "drug" and len(entry.ingredients) == 1:
            found.setdefault(entry.ingredients[0].upper().replace(" ", ""), set()).add(generic)
    return {inn: generics for inn, generics in found.items() if len(generics) == 1}


def _without_forms(vocabulary: Vocabulary) -> dict[str, set[str]]:
    """金匮肾气 for 金匮肾气丸: patent medicines that hold no drug and bear their form in the name, written without it."""
    found: dict[str, set[str]] = {}
    for drug in vocabulary:
        short = without_form(drug.generic)
        if drug.kind == "patent_medicine" and not drug.ingredients and len(short) > 2:
            found.setdefault(short, set()).add(drug.generic)
    return found


def _names(entries: Mapping[str, Mapping[str, Entry]]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Full and bare ways of writing of the tables' own generics, with the synonyms and brands of their rows."""
    full: dict[str, set[str]] = {}
    bare: dict[str, set[str]] = {}
    for generic, synonyms in _written(entries):
        for name in (generic, *synonyms):
            full.setdefault(name, set()).add(generic)
            if not set("([（【") & set(name):  # brackets tell 尿素[13C] from 尿素
                full.setdefault(clean(name).text, set()).add(generic)
        kind, holds = _first(entries, generic)
        if kind == "drug" or not holds:  # 消渴颗粒 holds no glibenclamide: the form tells it from 消渴丸
            bare.setdefault(normalise(generic), set()).add(generic)
    return full, bare


def _brand_routes() -> dict[str, str]:
    tables = [row for area in AREAS for _, row in read_table(FOLDER / "lexicon" / f"{area}.tsv")]
    bundled = load_vocabulary()
    known = [row for _, row in read_table(FOLDER / "aliases.tsv") if row["note"] == "brand"]
    listed = {row["alias"]: bundled.with_generic(row["generic"])[0].route for row in known}
    return {**listed, **{brand: row["route"] for row in tables for brand in _cells(row["brands"], ",")}}


def _written(entries: Mapping[str, Mapping[str, Entry]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for area in AREAS:
        for _, row in read_table(FOLDER / "lexicon" / f"{area}.tsv"):
            yield row["generic"], (*_cells(row["synonyms"], ","), *_cells(row["brands"], ","))
    for _, row in read_table(FOLDER / "lexicon" / "patent_medicines.tsv"):
        yield row["name"], _cells(row["synonyms"], ",")


def _first(entries: Mapping[str, Mapping[str, Entry]], generic: str) -> tuple[str, bool]:
    entry = next(iter(entries[generic].values()))
    return entry.kind, bool(entry.ingredients)


def _cells(text: str, mark: str) -> tuple[str, ...]:
    return () if text in ("-", "?") else tuple(cell.strip() for cell in text.split(mark) if cell.strip())


def drug_of(label: str, generic: str, form: str | None, route: str | None) -> Drug:
    """The drug that `label` is, given its generic and the route that its form tells (None: the usual one).

    A code is given for one route: an ointment has not the tablet's. Raises KeyError for a generic that is not known.
    """
    alike = load_lexicon().entries[generic]
    systemic = ("oral", "sublingual", "injection", "rectal")
    usual = sorted(alike, key=lambda entry: systemic.index(entry.route) if entry.route in systemic else len(systemic))
    fitting = [
        entry for entry in alike if route is None or entry.route == route or (route, entry.route) == ("oral", "sublingual")
    ]
    model = fitting[0] if route is not None and fitting else usual[0]
    atc = model.atc if fitting else None
    return Drug(label, generic, model.ingredients, atc, form, route or model.route, model.kind)
