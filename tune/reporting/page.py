"""A ReleaseReport, its pictures and, on this machine only, the worst disagreements -> report.html.

Messages are customers' words, masked or not. They are shown in the page that a user asks for, and
are never a part of the report, which travels with the release: `write` puts them into report.html
and nowhere else, so a page that is to be registered is written without them.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster.errors import DataError
from cluster.files import write_json, write_text
from serve_app.decide.policy import RouterPolicy
from serve_app.guard.prepare import prepare
from tune.objective import kept, trusts
from tune.replay import UNKNOWN, Table
from tune.reporting.models import ReleaseReport

WORST: Final = 20
_TEMPLATE: Final = "report.html"
_MAX_CHARACTERS: Final = 160


@dataclass(frozen=True)
class DisagreementRow:
    """A message that the edge answered and the cloud would have answered otherwise."""

    text: str = field(repr=False)  # masked and cut; a log line must not show it all the same
    edge: str
    cloud: str
    truth: str | None
    confidence: float
    trust: float


def disagreements(
    policy: RouterPolicy, table: Table, texts: Sequence[str], most: int = WORST
) -> list[DisagreementRow]:
    """Those the policy trusted most. Messages with personal data are left out, masked or not.

    Args:
        texts: of the table's rows, in step. They are masked here again.

    Raises:
        DataError: other texts than rows.
    """
    if len(texts) != table.rows:
        raise DataError(
            f"The table of {table.split!r} has {table.rows} rows, but {len(texts)} texts were "
            "given. Give the texts of the split that was replayed, in its order."
        )
    trust = trusts(policy, table)
    rows = np.flatnonzero(kept(policy, table) & table.differs & ~table.pinned)
    worst = rows[np.argsort(-trust[rows], kind="stable")][:most]
    return [_shown(table, int(i), texts[i], float(trust[i])) for i in worst]


def _shown(table: Table, i: int, raw: str, trust: float) -> DisagreementRow:
    message, truth = prepare(raw), int(table.true_label[i])
    text = "(could not be masked)" if message.detector_failed else message.text
    return DisagreementRow(
        text=text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…",
        edge=table.labels[table.edge_label[i]],
        cloud=table.labels[table.cloud_label[i]],
        truth=None if truth == UNKNOWN else table.labels[truth],
        confidence=float(table.signals["confidence"][i]),
        trust=trust,
    )


def write(
    folder: Path,
    report: ReleaseReport,
    pictures: Mapping[str, Path],
    worst: Sequence[DisagreementRow] = (),
) -> tuple[Path, Path]:
    """Writes report.json and report.html, and returns their paths.

    Args:
        worst: shown in the page; to be left out of a folder that leaves this machine.
    """
    data, page = folder / "report.json", folder / "report.html"
    write_json(data, report.model_dump(mode="json"))
    write_text(page, render_html(report, pictures, worst))
    return data, page


def render_html(
    report: ReleaseReport, pictures: Mapping[str, Path], worst: Sequence[DisagreementRow] = ()
) -> str:
    """One page that needs nothing else: the pictures (caption -> PNG) are inside it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    images = {
        caption: base64.b64encode(path.read_bytes()).decode("ascii")
        for caption, path in pictures.items()
    }
    return environment.get_template(_TEMPLATE).render(report=report, images=images, worst=worst)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def _interval(found: tuple[float, float], digits: int = 1) -> str:
    return f"{100 * found[0]:.{digits}f} to {100 * found[1]:.{digits}f}%"


def _amount(value: float, kind: str) -> str:
    """A promised figure in its unit."""
    return _usd(value) if kind == "cost_usd" else _percent(value, 2)


def _usd(value: float) -> str:
    return f"${value:.5f}"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


_FILTERS: Final[Mapping[str, Any]] = {
    "percent": _percent,
    "interval": _interval,
    "amount": _amount,
    "usd": _usd,
    "megabytes": _megabytes,
}
