"""What every benchmark writes: rows of figures, ours and a reference side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from cluster.files import write_json


@dataclass(frozen=True)
class Row:
    """One figure: medians, their ratio, and what it must be, as words and as a verdict."""

    figure: str
    ours: float
    reference: float | None
    ratio: float | None
    must: str
    ok: bool


def row(
    figure: str,
    ours: Sequence[float],
    reference: Sequence[float] = (),
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    judge_ratio: bool = False,
) -> Row:
    """Medians of repeated measurements. A limit, if there is one, holds for ours or the ratio."""
    mine, theirs = median(ours), median(reference) if reference else None
    ratio = mine / theirs if theirs else None
    judged = ratio if judge_ratio else mine
    assert judged is not None
    limits = ((">=", at_least), ("<=", at_most))
    must = " ".join(f"{sign} {limit:.4g}" for sign, limit in limits if limit is not None)
    ok = (at_least is None or judged >= at_least) and (at_most is None or judged <= at_most)
    return Row(figure, mine, theirs, ratio, f"ratio {must}" if judge_ratio else must, ok)


def publish(name: str, rows: Sequence[Row], notes: Mapping[str, object], home: Path) -> bool:
    """Prints the table, writes `<home>/bench/<name>.json` and says whether every row is met."""
    width = max(len(item.figure) for item in rows)
    print(f"{'':<{width}}  {'ours':>10} {'reference':>10} {'ratio':>8}")
    for item in rows:
        shown = [
            "-" if value is None else f"{value:.4g}"
            for value in (item.ours, item.reference, item.ratio)
        ]
        verdict = "ok  " if item.ok else "MISS"
        print(f"{item.figure:<{width}}  {shown[0]:>10} {shown[1]:>10} {shown[2]:>8}  {verdict} "
              f"{item.must}")  # fmt: skip
    folder = home / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", [asdict(item) for item in rows])
    write_json(folder / f"{name}-notes.json", dict(notes))
    print(f"written: {folder / f'{name}.json'}")
    return all(item.ok for item in rows)
