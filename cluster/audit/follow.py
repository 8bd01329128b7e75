"""The log as it grows: what was written since the last look, by whichever writer.

Readers that were told of records in another way learn here of those that nobody told them of: the
writer was killed before it could.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cluster.audit.days import is_log, start_of_last
from cluster.audit.records import Record, parse
from cluster.errors import AuditError

_AT_ONCE_BYTES: Final = 8 << 20  # about 15,000 records, half a second
_OFFLINE: Final = b'"offline":true'
_MAX_FILES: Final = 10_000  # a name begins with its day, so the oldest goes


class Follower:
    """`new()` gives each whole line once. Not thread-safe; the log may be written meanwhile.

    `offsets` says how far each file was read, and is all that a later Follower has to know.

    Args:
        offsets: where another one ended; None: only what is written from now on is new.
    """

    def __init__(self, folder: Path, offsets: Mapping[str, int] | None = None) -> None:
        self._folder = folder
        self.offsets = dict(offsets) if offsets is not None else self._ends()
        self.is_behind = False

    def new(self) -> list[Record]:
        """Records, file by file; `is_behind` says whether there are more, for a next call.

        A line that is no record is passed over, and so is a job's row, of which there may be
        millions. A folder that cannot be read has nothing new.
        """
        found: list[Record] = []
        left = _AT_ONCE_BYTES
        for path in self._files():
            lines = self._lines(path, left)
            left -= sum(map(len, lines))
            for line in lines:
                if _OFFLINE in line:
                    continue
                try:
                    found.append(parse(line))
                except AuditError:
                    continue
        self.is_behind = left <= 0
        return found

    def _files(self) -> list[Path]:
        """In order of their names. One that is gone is not forgotten: its disk may come back."""
        try:
            return sorted(path for path in self._folder.iterdir() if is_log(path))
        except OSError:
            return []

    def _lines(self, path: Path, most_bytes: int) -> list[bytes]:
        """Whole new lines, at most so many bytes of them, but for one line that is longer."""
        start = self.offsets.get(path.name, 0)
        try:
            size = path.stat().st_size
            if size == start or most_bytes <= 0:
                return []
            if size < start:  # another file of this name
                start = 0
            with path.open("rb") as file:
                file.seek(start)
                lines = file.readlines(most_bytes)
        except OSError:
            return []
        if lines and not lines[-1].endswith(b"\n"):  # torn, or a writer is just at it
            lines.pop()
        self.offsets[path.name] = start + sum(map(len, lines))
        while len(self.offsets) > _MAX_FILES:
            del self.offsets[min(self.offsets)]
        return lines

    def _ends(self) -> dict[str, int]:
        return dict(self._whole())

    def _whole(self) -> Iterator[tuple[str, int]]:
        for path in self._files():
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                yield path.name, start_of_last(file.fileno(), size, 0)
