"""Which columns of a file are read."""

from dataclasses import dataclass


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
