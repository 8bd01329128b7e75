"""The rows of `make bench-teacher`: what was found -> figures beside their references."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Final

from cluster.intervals import wilson
from tests.bench.rows import Row, row

PLAIN: Final = {f"plain {rate:g}": rate for rate in (5e-5, 1e-4, 3e-4)}
_OF_ROWS: Final = " rows, "
Found = Mapping[str, Mapping[str, float]]  # a piece's name -> its figures


def of_rows(what: str, rows: int | None) -> str:
    """The name of something that was trained on so many rows of `train`; None: on all."""
    return what if rows is None else f"{rows}{_OF_ROWS}{what}"


def figures(found: Found, what: str, figure: str = "accuracy") -> dict[int, float]:
    """A figure of something, by seed."""
    return {
        int(name.rpartition(" ")[2]): made[figure]
        for name, made in found.items()
        if name.rpartition(" ")[0] == what and figure in made
    }


def best_plain(found: Found, rows: int | None = None) -> str | None:
    """Which of the plain recipes has the highest median; None: none was measured."""
    medians = {
        what: median(by_seed.values())
        for what in PLAIN
        if (by_seed := figures(found, of_rows(what, rows)))
    }
    return max(medians, key=lambda what: medians[what]) if medians else None


def over_plain(found: Found, rows: int | None = None) -> tuple[str, float] | None:
    """The best plain recipe, and the points by which our median is above its; None: not both."""
    cloud, best = figures(found, of_rows("cloud", rows)), best_plain(found, rows)
    if not cloud or best is None:
        return None
    theirs = figures(found, of_rows(best, rows))
    return best, points(median(cloud.values()), median(theirs.values()))


def points(share: float, other: float) -> float:
    """Percentage points from one share to another; rounded, so that 0.3 is not 0.2999999."""
    return round(100 * (share - other), 6)


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[tuple[float, float]]:
    """Two figures of the seeds that have both."""
    return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]


def table(name: str, found: Found, before: str) -> Iterator[Row]:
    """The rows for which there are figures: medians over seeds, differences in points."""
    cloud, edge = figures(found, "cloud"), figures(found, "edge")
    if plain := over_plain(found):
        best, ahead = plain
        yield row(f"{name}: cloud over the best plain recipe, {best}, points", [ahead], at_least=0)
    if len(cloud) > 1:
        behind = points(median(cloud.values()), min(cloud.values()))
        yield row(f"{name}: worst seed of the cloud below its median, points", [behind],
                  at_most=0.7)  # fmt: skip
    if pairs := paired(cloud, edge):
        ahead_of_edge = [points(large, small) for large, small in pairs]
        kept = [small / large for large, small in pairs]
        yield row(f"{name}: cloud over its edge, points", ahead_of_edge, at_least=0.3)
        yield row(f"{name}: the same, the smallest of the seeds", [min(ahead_of_edge)], at_least=0)
        yield row(f"{name}: edge accuracy kept of its cloud's", kept, at_least=0.991)
    if cloud and (words := figures(found, "words")):
        ahead = points(median(cloud.values()), median(words.values()))
        yield row(f"{name}: cloud over TF-IDF + logistic regression, points", [ahead], at_least=0)
    yield from _cost(name, found, before)
    for rows in sorted({int(key.split(_OF_ROWS)[0]) for key in found if _OF_ROWS in key}):
        yield from _few(name, found, rows)
    yield from _accuracies(name, found, before)


def _cost(name: str, found: Found, before: str) -> Iterator[Row]:
    """Time beside the earlier build's, of the seeds that both have; and memory."""
    cloud, edge = figures(found, "cloud", "training_s"), figures(found, "edge", "training_s")
    ours = {seed: cloud[seed] + edge[seed] for seed in cloud.keys() & edge.keys()}
    if pairs := paired(ours, figures(found, "before", "training_s")):
        mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        times = [then / now for now, then in pairs]
        yield row(f"{name}: training time of {before} over ours", times, at_least=2.5)
        yield row(f"{name}: training, s, beside {before}", mine, theirs)
    elif ours:
        yield row(f"{name}: training, s", [*ours.values()])
    peaks = [
        peak
        for side in ("cloud", "edge")
        for peak in figures(found, side, "peak_memory_mb").values()
    ]
    if peaks:
        yield row(f"{name}: peak memory of a training worker, MB", [max(peaks)], at_most=1500)


def _few(name: str, found: Found, rows: int) -> Iterator[Row]:
    """Ours beside both references, trained on so many rows."""
    name = f"{name}, {rows} rows"
    cloud = figures(found, of_rows("cloud", rows))
    words = figures(found, of_rows("words", rows))
    if cloud and words:
        ahead = points(median(cloud.values()), median(words.values()))
        yield row(f"{name}: cloud over TF-IDF + logistic regression, points", [ahead], at_least=0)
    if plain := over_plain(found, rows):
        best, ahead = plain
        yield row(f"{name}: cloud over the best plain recipe, {best}, points", [ahead],
                  at_least=-0.5)  # fmt: skip
    for what in (*PLAIN, "words"):
        theirs = figures(found, of_rows(what, rows))
        if cloud and theirs:
            yield row(f"{name}: cloud accuracy, beside {what}", [*cloud.values()],
                      [*theirs.values()])  # fmt: skip


def _accuracies(name: str, found: Found, before: str) -> Iterator[Row]:
    """Each accuracy beside its reference's."""
    cloud, edge = figures(found, "cloud"), figures(found, "edge")
    sides = [("cloud", cloud, what, figures(found, what)) for what in (*PLAIN, "words")]
    sides += [
        ("edge", edge, "its cloud", cloud),
        ("cloud", cloud, before, figures(found, "before")),
        ("edge", edge, f"{before}'s edge", figures(found, "before", "edge_accuracy")),
    ]
    for side, ours, what, theirs in sides:
        if ours and theirs:
            yield row(f"{name}: {side} accuracy, beside {what}", [*ours.values()],
                      [*theirs.values()])  # fmt: skip


def intervals(found: Found, rows: int) -> dict[str, dict[str, object]]:
    """Every accuracy with its split, its number of rows and its 95% interval (Wilson)."""
    made: dict[str, dict[str, object]] = {}
    for name, of_piece in found.items():
        for figure, share in of_piece.items():
            if figure.endswith("accuracy"):
                low, high = wilson(round(share * rows), rows)
                made[f"{name}: {figure}"] = {
                    "split": "test", "rows": rows, "share": share,
                    "low": low, "high": high,
                }  # fmt: skip
    return made
