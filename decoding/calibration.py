"""Calibrated inclusion probabilities: the model's own number to the share of patients' lists that held such drugs.

`calibration.json` in a model's folder holds a non-decreasing, piecewise linear curve, learned on patients that the model did
not train on (`yaofang calibrate`, `eval.calibration`). Knows numbers and a file; not how they came about.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of, whole_file

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """A curve through the points (raw, calibrated), both ascending in [0, 1]."""

    raw: tuple[float, ...]
    calibrated: tuple[float, ...]
    samples: int
    """Lists a record behind the raw numbers; others are noisier or less so."""
    about: dict[str, Any]
    """Model, number of records and patients, and how well it did on those."""

    def __post_init__(self) -> None:
        for points in (self.raw, self.calibrated):
            if not points or list(points) != sorted(points) or not 0 <= points[0] <= points[-1] <= 1:
                raise ValueError("a calibration needs ascending points in [0, 1]")
        if len(self.raw) != len(self.calibrated):
            raise ValueError("a calibration needs as many calibrated points as raw ones")

    @property
    def version(self) -> str:
        """Twelve hex digits over the curve."""
        return sha256_of(json.dumps([self.raw, self.calibrated]))[:12]

    def __call__(self, p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Calibrated probabilities of any shape; an inclusion that the model excludes stays 0."""
        return np.where(p > 0, np.interp(p, self.raw, self.calibrated), 0.0)

    def write(self, folder: Path) -> Path:
        """Write the curve into a model's folder and return the file."""
        with whole_file(folder / FILE) as handle:
            json.dump(asdict(self), handle, ensure_ascii=False, indent=1)
        return folder / FILE


def load_calibration(folder: Path | None) -> Calibration | None:
    """The calibration of a model's folder; None if it has none. Raises InputError for a broken file."""
    if folder is None or not (folder / FILE).exists():
        return None
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Calibration(tuple(value["raw"]), tuple(value["calibrated"]), int(value["samples"]), dict(value["about"]))
    except (ValueError, KeyError, TypeError) as error:
        way_out = "Make it again with yaofang calibrate."
        raise InputError(f"a broken calibration ({error})", file=folder / FILE, way_out=way_out) from error
