"""Which columns of a file are read, and that it has them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import DataError


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read: the text, and beside it an id and what is to be kept."""

    text: str = "text"
    id: str | None = None
    keep: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.keep]))


def check_columns(path: Path, found: Sequence[str], columns: Columns) -> None:
    for name in columns.names:
        if Counter(found)[name] > 1:
            raise DataError(f"{path} has the column {name!r} more than once. Rename one.")
        if name not in found:
            raise DataError(
                f"{path} has no column {name!r}. Found: {', '.join(found) or 'none'}. Use "
                "--text-column, --id-column and --keep-columns."
            )
