"""What the answer is made of beside names and free text, as ids. Knows ids alone: no text, no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class AnswerIds:
    """The answer's fixed parts as ids, each encoded alone."""

    opening: tuple[int, ...]
    """Everything before the first diagnosis."""
    diagnosis_separator: int
    newline: int
    """Ends the diagnoses."""
    header: tuple[int, ...]
    """Between that newline and the first drug."""
    drug_separator: int
    end: int
    """The stop id that training taught: the only one that is offered."""
    ends: frozenset[int]
    """Every id that ends a row when it appears, `end` among them."""
    text: npt.NDArray[np.int64] = field(repr=False)
    """Ids allowed inside a diagnosis: no special token, no spare row, none that contains a newline or a separator."""

    def __post_init__(self) -> None:
        fixed = {self.newline, self.diagnosis_separator, *self.ends}
        if self.end not in self.ends:
            raise ValueError(f"the stop id {self.end} is not among the ids that end a row, {sorted(self.ends)}")
        if self.drug_separator in self.ends or len(fixed) != len(self.ends) + 2:
            raise ValueError("separators, newline and end ids must differ")
        if fixed & set(self.text.tolist()):
            raise ValueError("the text ids hold a newline, separator or end id")
