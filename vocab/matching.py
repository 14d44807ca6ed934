"""Which drug a written name means: the exact label, an alias, the name without dose, maker, form and salt, or a repaired name.

A match never changes the generic: a text that could mean two generics, or whose brackets name another drug, is ambiguous and
comes with the candidates. What is no drug at all, and what reads like a Chinese patent medicine that no table has, is said so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from yaofang.vocab.damaged import by_length, repaired
from yaofang.vocab.drugs import Drug, Vocabulary, load_vocabulary
from yaofang.vocab.lexicon import bundled_keys, drug_of, load_lexicon, one_meaning
from yaofang.vocab.naming import clean, form_of, normalise, route_of_form, without_form, without_salt
from yaofang.vocab.unlisted import is_no_drug, reads_like_patent_medicine

__all__ = ["Match", "Meaning", "generic_of", "link", "match", "meaning", "normalise"]

_NUMBERED = re.compile(r"^\s*\d{1,2}[.、)]")
SEVERAL = "several"
"""A way of writing that the tables give to more than one generic."""
_SYSTEMIC = ("oral", "sublingual", "injection")


@dataclass(frozen=True, slots=True)
class Match:
    """What a text was taken for."""

    text: str
    drug: Drug | None
    """A drug of the vocabulary asked, or None: unknown, ambiguous, or not in that vocabulary."""
    method: str
    """`exact`, `alias`, `normalised`, `repaired` or `none`."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a label of any list stands for."""

    drug: Drug
    """Its kind is `unlinked` where no generic could be told, `not_a_drug` where it names none."""
    method: str
    """`exact`, `alias`, `normalised`, `repaired`, `reads_like` (a patent medicine of no table), `pattern` (no drug), `none`."""
    candidates: tuple[str, ...]
    """Generics that the name may mean, where it was not linked."""

    def to_json(self) -> dict[str, Any]:
        """As a row of `yaofang vocab check`."""
        drug = self.drug
        known = drug.kind in ("drug", "patent_medicine")
        return {
            "label": drug.label,
            "kind": drug.kind,
            "generic": drug.generic if known else None,
            "ingredients": list(drug.ingredients),
            "atc": drug.atc,
            "route": drug.route if known else None,
            "method": self.method,
            "candidates": list(self.candidates),
        }


def match(text: str, vocabulary: Vocabulary) -> Match:
    """Find the drug of `vocabulary` that `text` names.

    The label itself first; then the labels of the same generic and the same route, of which the one of the same form is
    preferred, then the one that is written with the generic, then the shortest.
    """
    name = text.strip()
    if name in vocabulary:
        return Match(text, vocabulary.drug(name), "exact")
    generic, method, _ = _resolve(name, vocabulary)
    written = clean(name).text
    form = form_of(written)
    drug = _preferred(vocabulary.with_generic(generic), written, form, _route(name, form)) if generic else None
    return Match(text, drug, method) if drug else Match(text, None, "none")


def generic_of(text: str) -> str:
    """The generic that a label or a name means, by the lexicon; the normalised text where that knows none."""
    name = text.strip()
    return _resolve(name, None)[0] or _unknown(name)


def link(label: str) -> Drug:
    """A drug for a label of a user's list: its generic's ingredients and code by the label's route, or `unlinked`."""
    return meaning(label).drug


def meaning(label: str) -> Meaning:
    """What a label stands for, and how that was found; a label that means two drugs is `unlinked`, with the candidates."""
    name = label.strip()
    bundled = load_vocabulary()
    if name in bundled:
        return Meaning(replace(bundled.drug(name), label=label), "exact", ())
    form = form_of(clean(name).text)
    route = _route(name, form)
    generic, method, candidates = _resolve(name, None)
    if method == SEVERAL:
        generic, method = _by_route(candidates, route), "normalised"
    if generic:
        spelt = route or load_lexicon().brand_routes.get(clean(name).text)
        return Meaning(drug_of(label, generic, form, spelt), method, ())
    unknown = _unknown(name)
    if is_no_drug(name):
        return Meaning(Drug(label, unknown, (), None, form, route or "oral", "not_a_drug"), "pattern", ())
    herbal = all(entry.kind == "patent_medicine" for near in candidates for entry in load_lexicon().entries[near])
    if herbal and reads_like_patent_medicine(clean(name).text):
        return Meaning(Drug(label, unknown, (), None, form, route or "oral", "patent_medicine"), "reads_like", candidates)
    return Meaning(Drug(label, unknown, (), None, form, route or "oral", "unlinked"), "none", candidates)


def _by_route(candidates: tuple[str, ...], route: str | None) -> str | None:
    """The patent medicine by the label's route, where a name is that of several (丹参片, 丹参注射液) and none holds a drug."""
    entries = [entry for name in candidates for entry in load_lexicon().entries[name]]
    if any(entry.kind != "patent_medicine" or entry.ingredients for entry in entries):
        return None
    stems = {without_form(name) for name in candidates}
    fitting = sorted((e for e in entries if route in (None, e.route)), key=lambda entry: entry.route != "oral")
    return fitting[0].generic if len(stems) == 1 and fitting else None


def _resolve(name: str, vocabulary: Vocabulary | None) -> tuple[str | None, str, tuple[str, ...]]:
    """The one generic of a name, how it was found, and the candidates where there is none, or more than one."""
    cleaned = clean(name)
    found, method = _first_known(name, cleaned.text, vocabulary)
    beside = {generic for aside in cleaned.asides for generic in _first_known(aside, clean(aside).text, vocabulary)[0]}
    if not found:
        return _repair(cleaned.text, beside)
    if beside - found:
        return None, "none", tuple(sorted(found | beside))
    if len(found) != 1:
        return None, SEVERAL, tuple(sorted(found))
    return next(iter(found)), method, ()


def _repair(written: str, beside: set[str]) -> tuple[str | None, str, tuple[str, ...]]:
    """The generic of a damaged name; brackets that name a drug must agree."""
    spellings, names = load_lexicon().spellings, _by_length()
    bare = without_salt(without_form(written))
    near: list[str] = []
    for form in dict.fromkeys((without_form(written), bare)):
        generic, found = repaired(form, spellings, names)
        near += found
        if generic and not beside - {generic}:
            return (generic, "repaired", ()) if set(near) == {generic} else (None, "none", tuple(dict.fromkeys(near)))
    return None, "none", tuple(dict.fromkeys((*near, *sorted(beside))))


def _first_known(name: str, cleaned: str, vocabulary: Vocabulary | None) -> tuple[frozenset[str], str]:
    """Generics of the first way of writing the name that any table knows, the nearest to what was written first."""
    if not cleaned:
        return frozenset(), "none"
    bare = without_form(cleaned)
    ways = (
        (name, "alias"),
        (cleaned, "normalised"),
        (bare, "normalised"),
        (without_salt(bare), "normalised"),
        (bare.replace("/", ""), "normalised"),  # 左旋多巴/苄丝肼
        (clean(_NUMBERED.sub("", name)).text, "normalised"),  # a list number before a name that begins with digits
    )
    known = ((_generics(key, vocabulary), method) for key, method in ways)
    return next(((generics, method) for generics, method in known if generics), (frozenset(), "none"))


def _generics(key: str, vocabulary: Vocabulary | None) -> frozenset[str]:
    """What a spelling means in this vocabulary or, where that does not know it, in the lexicon."""
    own = _keys(vocabulary).get(key) if vocabulary is not None else None
    return own or load_lexicon().spellings.get(key) or frozenset()


def _unknown(name: str) -> str:
    """The generic of a name that stands for no drug of the tables. It must not look like one that does."""
    bare = normalise(name)
    return name if not bare or _generics(bare, None) else bare


@lru_cache(maxsize=8)
def _keys(vocabulary: Vocabulary) -> dict[str, frozenset[str]]:
    """Every way of writing that leads to a generic of the vocabulary."""
    return one_meaning(*bundled_keys(vocabulary))


@cache
def _by_length() -> dict[int, tuple[str, ...]]:
    """The spellings that a damaged name is compared with, by their length."""
    return by_length(load_lexicon().spellings)


def _route(name: str, form: str | None) -> str | None:
    if "吸入用" in name:
        return "inhaled"
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
