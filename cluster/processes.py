"""Which process is which: a pid is used again, its start time with it is not."""

from pathlib import Path


def started(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot (proc(5), field 22); None if gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
