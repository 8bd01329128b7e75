"""Synthetic tables for the sweep's tests: confidence goes with being right, as in a real model."""

import numpy as np

from serve_app.contracts import Message, Prediction
from serve_app.decide.signals import SIGNALS, log_odds, logit_margin
from tune.replay import UNKNOWN, Floats, Ints, Table

LABELS = ("negative", "neutral", "positive")


def toy_table(
    rows: int,
    seed: int = 0,
    split: str = "tune",
    *,
    pinned_share: float = 0.05,
    unknown_share: float = 0.0,
    distinct: int | None = None,
) -> Table:
    """An edge that is right with the probability that it claims, and a cloud right on 96%.

    Args:
        distinct: values that a signal may take, so that ties are common; None: practically none.
    """
    dice = np.random.default_rng(seed)
    confidence = 1.0 - 0.66 * dice.beta(0.6, 2.5, rows)
    truth = dice.integers(0, len(LABELS), rows)
    signals = {name: dice.random(rows) for name in SIGNALS if name != "ngram_margin"}
    # From a generator of its own: what follows is drawn as if there were no such signal.
    signals["ngram_margin"] = np.random.default_rng([seed, 1]).random(rows)
    signals["confidence"] = confidence
    signals["margin"] = np.clip(2 * confidence - 1 + dice.normal(0, 0.03, rows), 0, 1)
    signals["entropy"] = np.clip(1.4 * (1 - confidence) + dice.normal(0, 0.03, rows), 0, 1)
    if distinct is not None:
        signals = {name: np.round(column * distinct) / distinct for name, column in signals.items()}
    pairs = list(zip(signals["confidence"].tolist(), signals["margin"].tolist(), strict=True))
    signals["log_odds"] = np.array([log_odds(confidence) for confidence, _ in pairs])
    signals["logit_margin"] = np.array([logit_margin(*pair) for pair in pairs])
    true_label = np.where(dice.random(rows) < unknown_share, UNKNOWN, truth)
    return Table(
        signals=signals,
        pinned=dice.random(rows) < pinned_share,
        edge_label=_right_with(confidence, truth, dice),
        cloud_label=_right_with(np.full(rows, 0.96), truth, dice),
        true_label=true_label,
        labels=LABELS,
        split=split,
        fingerprint="f" * 8,
        edge_sha256="e" * 64,
        cloud_sha256="c" * 64,
    )


def _right_with(chance: Floats, truth: Ints, dice: np.random.Generator) -> Ints:
    wrong = (truth + dice.integers(1, len(LABELS), truth.size)) % len(LABELS)
    return np.where(dice.random(truth.size) < chance, truth, wrong).astype(np.int64)


def row_of(table: Table, i: int) -> tuple[Message, Prediction, dict[str, float]]:
    """One row as the answer path would see it: (message, prediction, signals)."""
    values = {name: float(column[i]) for name, column in table.signals.items()}
    message = Message("a text", ("email",) if table.pinned[i] else ())
    prediction = Prediction(
        label=table.labels[table.edge_label[i]],
        confidence=values["confidence"],
        margin=values["margin"],
        entropy=values["entropy"],
        shares=b"",
        energy=values["energy"],
        distance=values["distance"],
        ngram_margin=values["ngram_margin"],
    )
    return message, prediction, values
