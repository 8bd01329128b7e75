"""The guard: recall by kind and spelling, false alarms on real messages, and what it costs.

    python -m tests.bench.guard --data test.csv --text text      (--data: as often as you like)
    python -m tests.bench.guard --cost [--data test.csv]          what it costs alone

Recall is counted on the held-out corpus of tests/support/planted_held_out.py, planted in its own
carriers and, where data is given, in real messages. A message counts as pinned if anything was
found in it, and as masked if also nothing of the planted value is left in the prepared text.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import pyarrow.csv

from cluster.intervals import wilson
from cluster.settings import load_settings
from serve_app.guard.pii import redact
from serve_app.guard.prepare import normalise, prepare
from tests.bench.rows import Row, publish
from tests.support.planted import DEV, HARMLESS, Corpus, Planted, harmless, plant, survives
from tests.support.planted_held_out import HELD_OUT

SEED: Final = 2027
MESSAGES: Final = 10_000
MUST_RECALL: Final = 0.98
MUST_FALSE_PER_1000: Final = 3.0
MUST_HARMLESS_PER_1000: Final = 10.0
MUST_P50_US: Final = 100.0
MUST_WORST_MS: Final = 100.0
_REPEATS: Final = 5
_LONGEST: Final = 10_000  # characters, as the service admits
_HUNDRED: Final = 100
_SPEED_TEXTS: Final = 3_000
HOSTILE: Final = (
    "1", "1 ", "0-", "aa11 ", "GB82 WEST 1234 ", "98765 43210 x ", "+1 ", "a@", "a at b dot ",
    "(at)", "_at_", "- at ", "* ", "ssn it's ", "account is my ", "12 Aa Aa ", "my address is ",
    "a", "a ", "\ufdfa", "%40", "%2540", "&#49;", "=34", "\\u0031", "password is ", "the code is ",
    "4111 1111 1111 1111 ", "rue de la ", "seed phrase ", "-----BEGIN PRIVATE KEY----- ",
)  # fmt: skip


@dataclass
class Recall:
    """Counts by kind and by (kind, spelling)."""

    planted: Counter[tuple[str, ...]] = field(default_factory=Counter)
    pinned: Counter[tuple[str, ...]] = field(default_factory=Counter)
    masked: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def add(self, planted: Planted) -> None:
        masked, kinds = redact(normalise(planted.text))
        whole = bool(kinds) and not survives(planted, masked)
        for key in ((), (planted.kind,), (planted.kind, planted.spelling)):
            self.planted[key] += 1
            self.pinned[key] += bool(kinds)
            self.masked[key] += whole

    def row(self, figure: str, key: tuple[str, ...], must: float | None) -> Row:
        rows, share = self.planted[key], self.pinned[key] / self.planted[key]
        low, high = wilson(self.pinned[key], rows)
        wanted = f"pinned, {low:.4f} to {high:.4f} of {rows}"
        ok = must is None or share >= must
        return Row(figure, share, self.masked[key] / rows, None, wanted, ok)


def recall(corpus: Corpus, carriers: Sequence[str] = (), *, fair: bool = True) -> Recall:
    counted = Recall()
    for planted in plant(corpus, MESSAGES, SEED, carriers, fair):
        counted.add(planted)
    return counted


def _recall_rows(name: str, counted: Recall, must: float | None) -> Iterator[Row]:
    for key in sorted(key for key in counted.planted if len(key) <= 1):
        yield counted.row(f"{name}: {key[0] if key else 'all kinds'}", key, must)


def _missed(counted: Recall) -> dict[str, str]:
    """The spellings of which some were not pinned, or not masked whole."""
    return {
        " / ".join(key): f"{counted.pinned[key]} pinned, {counted.masked[key]} masked of {rows}"
        for key, rows in counted.planted.items()
        if len(key) == 2 and counted.masked[key] < rows
    }


def false_alarms(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(kinds, text) of every message in which something is found."""
    found = ((redact(normalise(text))[1], text) for text in texts)
    return [(",".join(kinds), text) for kinds, text in found if kinds]


def _false_row(name: str, alarms: int, rows: int) -> Row:
    low, high = wilson(alarms, rows)
    per_1000 = 1000 * alarms / rows
    wanted = f"<= {MUST_FALSE_PER_1000:g}; {1000 * low:.3f} to {1000 * high:.3f} of {rows}"
    return Row(
        f"found per 1,000 in {name}", per_1000, None, None, wanted, per_1000 <= MUST_FALSE_PER_1000
    )


def _harmless_row(kind: str) -> Row:
    found = sum(bool(redact(text)[1]) for text in harmless(kind, 1000, SEED))
    # A bare number is an order's or a customer's: nobody can tell, so nothing is promised of it.
    must = None if kind == "bare" else MUST_HARMLESS_PER_1000
    ok = must is None or found <= must
    return Row(f"found per 1,000 {kind} numbers", found, None, None, f"<= {must}", ok)


def _p50_us(texts: Sequence[str]) -> float:
    taken = []
    for text in texts:
        started = time.perf_counter()
        redact(text)
        taken.append(1e6 * (time.perf_counter() - started))
    return median(taken)


def _prepare_ms(text: str) -> float:
    started = time.process_time()
    prepare(text)
    return 1000 * (time.process_time() - started)


def _worst_ms() -> tuple[float, str]:
    """The slowest hostile text of the longest length, in CPU time, and its unit."""

    def taken(unit: str) -> float:
        return _prepare_ms(("12 " + unit * _LONGEST)[: _LONGEST - 6] + " 12345")

    return max((min(taken(unit) for _ in range(3)), unit) for unit in HOSTILE)


def _of_hundred(texts: Sequence[str]) -> list[str]:
    """Messages of 100 characters: the texts in a row, cut at spaces, none with half a number."""
    row = " ".join(texts)
    cut = []
    while len(row) > 2 * _HUNDRED:
        end = row.rfind(" ", 0, _HUNDRED + 1)
        cut.append(row[: end if end > 0 else _HUNDRED])
        row = row[len(cut[-1]) + 1 :]
    return [text for text in cut if len(text) > _HUNDRED - 20]


def _speed_rows(texts: Sequence[str]) -> Iterator[Row]:
    texts = [normalise(text) for text in texts[:_SPEED_TEXTS]]
    hundred = _of_hundred(texts)
    digits = [text for text in hundred if any(map(str.isdecimal, text))]
    for name, chosen in (
        ("a message", texts),
        ("a message of 100 characters", hundred),
        ("a message of 100 characters with digits", digits),
    ):
        p50 = median(_p50_us(chosen) for _ in range(_REPEATS)) if chosen else 0.0
        yield Row(f"p50 of {name}, us", p50, None, None, f"<= {MUST_P50_US:g}", p50 <= MUST_P50_US)
    for size in (10_000, 100_000, 1_000_000):
        text = (" ".join(texts) * (size // 10_000 + 1))[:size]
        taken = min(_prepare_ms(text) for _ in range(3))
        per = 1000 * taken / size
        yield Row(
            f"ns per character of {size:,} of messages", 1000 * per, None, None, "linear", True
        )
    worst, unit = _worst_ms()
    wanted = f"<= {MUST_WORST_MS:g} ({unit!r})"
    yield Row(f"worst of {_LONGEST} characters, ms", worst, None, None, wanted,
              worst <= MUST_WORST_MS)  # fmt: skip


def bench(data: dict[str, list[str]], home: Path) -> bool:
    """Args: data: name -> its messages. Prints, writes guard.json, says whether all are met."""
    real = [text for texts in data.values() for text in texts]
    held_out, fair_dev = recall(HELD_OUT), recall(DEV)
    rows = [*_recall_rows("held out", held_out, MUST_RECALL)]
    if real:
        rows += _recall_rows("held out, in real messages", recall(HELD_OUT, real), MUST_RECALL)
    rows += list(_recall_rows("dev", fair_dev, None))[:1]
    rows += list(_recall_rows("unfair spellings", recall(HELD_OUT, fair=False), None))[:1]
    alarms = {name: false_alarms(texts) for name, texts in data.items()}
    rows += [_false_row(name, len(found), len(data[name])) for name, found in alarms.items()]
    rows += [_harmless_row(kind) for kind in HARMLESS]
    rows += _speed_rows(real or [planted.rest for planted in plant(DEV, 2000, SEED)])
    for name, found in alarms.items():
        print(*(f"{name}: {kinds}: {text}" for kinds, text in found), sep="\n")
    notes = {"missed": _missed(held_out), "seed": SEED, "messages": MESSAGES}
    return publish("guard", rows, notes, home)


def _read(path: Path, column: str) -> list[str]:
    return [str(text) for text in pyarrow.csv.read_csv(path)[column].to_pylist()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.guard", description=__doc__)
    parser.add_argument("--data", type=Path, action="append", default=[], help="CSV of messages")
    parser.add_argument("--text", default="text", help="its column")
    parser.add_argument("--cost", action="store_true", help="what it costs alone")
    given = parser.parse_args(arguments)
    data = {f"{path.parent.name}/{path.name}": _read(path, given.text) for path in given.data}
    if given.cost:
        texts = [text for found in data.values() for text in found]
        print(*_speed_rows(texts or [planted.rest for planted in plant(DEV, 2000, SEED)]), sep="\n")
        return 0
    return 0 if bench(data, load_settings().home) else 1


if __name__ == "__main__":
    raise SystemExit(main())
