"""Which drug a written name means: the exact label, an alias, or the name without dose, maker, form and salt.

A match never changes the generic: names are compared for equality only, never by likeness, and a text that could mean
two generics, or whose brackets name another drug, is left unmatched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from yaofang.vocab.drugs import Drug, Vocabulary, load_vocabulary
from yaofang.vocab.files import read_table
from yaofang.vocab.naming import clean, form_of, normalise, route_of_form, without_form, without_salt

__all__ = ["Match", "generic_of", "link", "match", "normalise"]

ALIASES = Path(__file__).parent / "default" / "aliases.tsv"

_SYSTEMIC = ("oral", "sublingual", "injection")


@dataclass(frozen=True, slots=True)
class Match:
    """What a text was taken for."""

    text: str
    drug: Drug | None
    """A drug of the vocabulary asked, or None: unknown, ambiguous, or not in that vocabulary."""
    method: str
    """`exact`, `alias`, `normalised` or `none`."""


def match(text: str, vocabulary: Vocabulary) -> Match:
    """Find the drug of `vocabulary` that `text` names.

    The label itself first; then the labels of the same generic and the same route, of which the one of the same form is
    preferred, then the one that is written with the generic, then the shortest.
    """
    name = text.strip()
    if name in vocabulary:
        return Match(text, vocabulary.drug(name), "exact")
    generic, method = _resolve(name, vocabulary)
    written = clean(name).text
    form = form_of(written)
    drug = _preferred(vocabulary.with_generic(generic), written, form, _route(name, form)) if generic else None
    return Match(text, drug, method) if drug else Match(text, None, "none")


def generic_of(text: str) -> str:
    """The generic that a label or a name means, by the bundled table; the normalised text where that knows none."""
    name = text.strip()
    return _resolve(name, load_vocabulary())[0] or _unknown(name)


def link(label: str) -> Drug:
    """A drug for a label of a user's list: the bundled drug of that label, or one with its generic, or `unlinked`."""
    bundled = load_vocabulary()
    if label in bundled:
        return bundled.drug(label)
    form = form_of(clean(label).text)
    route = _route(label, form)
    generic, _ = _resolve(label, bundled)
    alike = bundled.with_generic(generic) if generic else ()
    if not alike:
        return Drug(label, _unknown(label), (), None, form, route or "oral", "unlinked")
    same_route = [drug for drug in alike if _same_route(drug.route, route)]
    model = (same_route or sorted(alike, key=lambda drug: drug.route not in _SYSTEMIC))[0]
    atc = model.atc if same_route else None  # a code is given for one route: an ointment has not the tablet's
    return Drug(label, model.generic, model.ingredients, atc, form, route or model.route, model.kind)


def _resolve(name: str, vocabulary: Vocabulary) -> tuple[str | None, str]:
    """The one generic of a name and how it was found; (None, "none") if there is none, or more than one."""
    cleaned = clean(name)
    found, method = _first_known(name, cleaned.text, vocabulary)
    beside = {generic for aside in cleaned.asides for generic in _first_known(aside, clean(aside).text, vocabulary)[0]}
    if len(found) != 1 or beside - found:
        return None, "none"
    return next(iter(found)), method


def _first_known(name: str, cleaned: str, vocabulary: Vocabulary) -> tuple[frozenset[str], str]:
    """Generics of the first way of writing the name that any table knows, the nearest to what was written first."""
    bare = without_form(cleaned)
    ways = ((name, "alias"), (cleaned, "normalised"), (bare, "normalised"), (without_salt(bare), "normalised"))
    known = ((_generics(key, vocabulary), method) for key, method in ways)
    return next(((generics, method) for generics, method in known if generics), (frozenset(), "none"))


def _generics(key: str, vocabulary: Vocabulary) -> frozenset[str]:
    """What a spelling means in this vocabulary or, where that does not know it, in the bundled one."""
    return _keys(vocabulary).get(key) or _keys(load_vocabulary()).get(key) or frozenset()


def _unknown(name: str) -> str:
    """The generic of a name that stands for no drug of the table. It must not look like one that does."""
    bare = normalise(name)
    return name if not bare or _generics(bare, load_vocabulary()) else bare


@lru_cache(maxsize=8)
def _keys(vocabulary: Vocabulary) -> dict[str, frozenset[str]]:
    """Every way of writing that leads to a generic: the generic, the labels, the labels made bare, the aliases."""
    keys: dict[str, set[str]] = {}
    bare: dict[str, set[str]] = {}
    for drug in vocabulary:
        if drug.kind == "unlinked":
            keys.setdefault(drug.label, set()).add(drug.generic)
            continue
        for key in (drug.generic, drug.label, clean(drug.label).text):
            keys.setdefault(key, set()).add(drug.generic)
        if drug.generic == drug.label:
            continue  # the form belongs to the name (甲状腺片, 逍遥丸): without it another thing is meant
        for key in (without_form(drug.label), normalise(drug.label)):
            bare.setdefault(key, set()).add(drug.generic)
    for alias, generic in _aliases().items():
        keys.setdefault(alias, set()).add(generic)
    # A name written in full outranks what is left of another name: 碳酸钙 is itself, whatever a label shrinks to.
    return {key: frozenset(keys.get(key) or bare[key]) for key in keys.keys() | bare.keys() if key}


@cache
def _aliases() -> dict[str, str]:
    """Brand names, older names and other spellings, each with its generic."""
    return {row["alias"]: row["generic"] for _, row in read_table(ALIASES)}


def _route(name: str, form: str | None) -> str | None:
    if form is None and "注射用" in name:
        return "injection"
    return route_of_form(form)


def _same_route(route: str, asked: str | None) -> bool:
    """Whether a drug of `route` can be what a form given by route `asked` names; a tablet may be put under the tongue."""
    return asked is None or route == asked or (asked == "oral" and route == "sublingual")


def _preferred(drugs: tuple[Drug, ...], written: str, form: str | None, route: str | None) -> Drug | None:
    alike = [drug for drug in drugs if _same_route(drug.route, route)]
    if route is None and any(drug.route in _SYSTEMIC for drug in alike):
        alike = [drug for drug in alike if drug.route in _SYSTEMIC]
    if not alike:
        return None

    def distance(drug: Drug) -> tuple[bool, bool, bool, bool, int]:
        other_form = form is not None and drug.form != form
        brand = drug.generic not in drug.label
        return drug.label != written, other_form, drug.label != drug.generic, brand, len(drug.label)

    return min(alike, key=distance)
