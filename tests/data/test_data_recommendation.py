"""The published form of a Recommendation: dataclass, JSON schema and golden file say the same."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from yaofang.data import recommendation as form
from yaofang.data.recommendation import Blocked, Considered, Cut, Diagnosis, Drug, KeptOut, Recommendation, Warning

GOLDEN = Path(__file__).parent.parent / "golden" / "recommendation.json"

EXAMPLE = Recommendation(
    id="2-1",
    diagnoses=(Diagnosis("2型糖尿病", "given"), Diagnosis("泌尿系感染", "generated")),
    drugs=(
        Drug("阿卡波糖", "阿卡波糖", "A10BF01", 0.61, None, 0.0),
        Drug(
            label="替米沙坦",
            generic="替米沙坦",
            atc="C09CA07",
            p_step=0.25,
            p_include=0.5,
            masked_mass=0.125,
            kept_out=(KeptOut("贝那普利", "T1"),),
            warnings=(Warning("interaction", "T2", "与螺内酯合用需监测血钾", "ansm"),),
        ),
    ),
    blocked=(Blocked("贝那普利", "替米沙坦", "T1", 0.0625),),
    considered=(Considered("二甲双胍", 0.25),),
    cuts=(Cut("现病史", 120),),
    truncated=False,
    tokens=1422,
    seconds=0.5,
    versions={"model": "a1", "vocab": "b2", "conflicts": "c3", "code": "0.1.0"},
)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("yaofang.data") / "schemas" / "recommendation.schema.json").read_text("utf-8"))
    return found


def as_published(value: Recommendation) -> Any:
    return json.loads(json.dumps(value.to_json()))


def test_the_json_form_is_that_of_the_golden_file() -> None:
    assert as_published(EXAMPLE) == json.loads(GOLDEN.read_text("utf-8"))


def test_the_golden_file_is_read_back_as_the_same_recommendation() -> None:
    assert Recommendation.from_json(json.loads(GOLDEN.read_text("utf-8"))) == EXAMPLE


def test_full_and_empty_recommendations_validate(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(as_published(EXAMPLE))
    validator.validate(as_published(Recommendation(id="2-1", diagnoses=(), drugs=())))


ADDED = {"below_minimum", "considered"}
"""Keys that the first version of the form did not have."""


def test_the_form_of_an_earlier_version_is_read(schema: dict[str, Any]) -> None:
    value = {key: part for key, part in as_published(EXAMPLE).items() if key not in ADDED}
    jsonschema.validate(value, schema)
    assert Recommendation.from_json(value) == dataclasses.replace(EXAMPLE, considered=())


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Recommendation) if field.name not in ADDED])
def test_every_key_is_required(schema: dict[str, Any], key: str) -> None:
    value = as_published(EXAMPLE)
    del value[key]
    with pytest.raises(jsonschema.ValidationError, match="required"):
        jsonschema.validate(value, schema)


def test_a_key_of_a_later_version_is_accepted_and_left_out(schema: dict[str, Any]) -> None:
    value = {**as_published(EXAMPLE), "later": 1}
    jsonschema.validate(value, schema)
    assert Recommendation.from_json(value) == EXAMPLE


def test_a_probability_above_one_is_refused(schema: dict[str, Any]) -> None:
    value = as_published(EXAMPLE)
    value["drugs"][0]["p_step"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, schema)


def test_the_schema_names_exactly_the_fields_of_the_dataclasses(schema: dict[str, Any]) -> None:
    parts = {
        "diagnoses": form.Diagnosis,
        "drugs": form.Drug,
        "blocked": form.Blocked,
        "cuts": form.Cut,
    }
    keys = {name: set(schema["properties"][name]["items"]["properties"]) for name in parts}
    assert keys == {name: {field.name for field in dataclasses.fields(kind)} for name, kind in parts.items()}
    assert set(schema["properties"]) == {field.name for field in dataclasses.fields(Recommendation)}
