"""One row as it was found, or what is wrong with it; and that a file has the columns asked for."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

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


# At most three words that start with a letter. A file without a header has its first row there.
_COLUMN: Final = re.compile(r"[^\W\d][\w./-]{0,39}(?: [\w./-]{1,40}){0,2}")


def missing(place: object, name: str, found: Iterable[str]) -> DataError:
    """What is no name of a column is not repeated: it may be a customer's message."""
    names = list(found)
    if names and not all(map(_COLUMN.fullmatch, names)):
        return DataError(
            f"{place} has no column {name!r}. Its first line has {len(names)} cells that look like "
            "a row, not like names of columns. Add a line of names at its top, such as text,label."
        )
    return DataError(
        f"{place} has no column {name!r}. Found: {', '.join(names) or 'none'}. Name the right one "
        "with --text-column or the like."
    )
