"""The one error a user sees for bad input: it names file, line and field, and the way out."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """Bad input. The command line prints it and exits with code 2.

    `problem` says what is wrong, `way_out` what to do about it; `file`, `line` (from 1) and `field` say where.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        way_out: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.line = line
        self.field = field
        self.way_out = way_out
        super().__init__(self.__str__())

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place += f", line {self.line}" if place else f"line {self.line}"
        if self.field is not None:
            place += f", field {self.field}" if place else f"field {self.field}"
        text = f"{place}: {self.problem}" if place else self.problem
        return f"{text}. {self.way_out}" if self.way_out else text
