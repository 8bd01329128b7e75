"""One row as it was found, or what is wrong with it; and that a file has the columns asked for."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cluster.errors import DataError


class Problem(NamedTuple):
    """Why a row cannot be used, and what its owner can do about it."""

    what: str
    advice: str


@dataclass(slots=True)
class FoundRow:
    """The cells of a row by column, as its format has them; None, and the problem, if it is broken.

    `line` is the first of its lines in a text file.
    """

    line: int | None
    cells: Mapping[str, Any] | None = field(repr=False)
    problem: Problem | None = None


def check_columns(path: Path, found: Sequence[str], wanted: Iterable[str]) -> None:
    """Raises DataError if one is missing, or is there twice."""
    for name in wanted:
        if Counter(found)[name] > 1:
            raise DataError(
                f"{path} has the column {name!r} more than once, so it is unclear which is meant. "
                "Rename or delete one."
            )
        if name not in found:
            raise missing(path, name, found)


def missing(place: object, name: str, found: Iterable[str]) -> DataError:
    return DataError(
        f"{place} has no column {name!r}. Found: {', '.join(found) or 'none'}. Name the right one "
        "with --text-column or the like."
    )
