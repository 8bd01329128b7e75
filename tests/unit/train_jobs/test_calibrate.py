"""Temperature scaling: finds what was done to the logits, and never makes them worse."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.model.classifier import softmax
from serve_app.model.reliability import BINS, reliability
from train_jobs.calibrate import _draw, _judge, fit_temperature

Sample = tuple[NDArray[np.float64], NDArray[np.int64]]


def honest(rows: int, seed: int, classes: int = 4, scale: float = 2.0) -> Sample:
    """Logits whose probabilities are true: labels are drawn from them."""
    dice = np.random.default_rng(seed)
    logits = dice.normal(0, scale, (rows, classes))
    labels = (softmax(logits).cumsum(-1) < dice.random((rows, 1))).sum(-1)
    return logits, labels.astype(np.int64)


def likelihood_loss(logits: NDArray[np.float64], labels: NDArray[np.int64], heat: float) -> float:
    return -float(np.log(softmax(logits, heat)[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("heat", [0.3, 1.0, 2.5, 6.0])
def test_a_known_temperature_is_recovered(heat: float) -> None:
    logits, labels = honest(20_000, seed=1)
    assert fit_temperature(logits * heat, labels) == pytest.approx(heat, rel=0.03)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.floats(0.05, 20))
def test_the_fit_is_never_worse_than_leaving_it(seed: int, rows: int, scale: float) -> None:
    logits, labels = honest(rows, seed)
    logits = logits * scale
    found = likelihood_loss(logits, labels, fit_temperature(logits, labels))
    assert found <= likelihood_loss(logits, labels, 1.0) + 1e-6


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_is_always_right_or_wrong_gets_a_bounded_temperature(right: bool) -> None:
    """Its likelihood grows without end; the temperature may not."""
    logits, labels = np.eye(3)[[0, 1, 2, 0]] * 5, np.array([0, 1, 2, 0])
    found = fit_temperature(logits, labels if right else (labels + 1) % 3)
    assert 0.04 < found < 21


def test_calibrating_brings_the_error_down_on_other_rows() -> None:
    logits, labels = honest(4000, seed=2)
    heat = fit_temperature(logits[:2000] * 3, labels[:2000])
    before = _judge(logits[2000:] * 3, labels[2000:], 1.0)
    after = _judge(logits[2000:] * 3, labels[2000:], heat)
    assert after.error < 0.05 < 0.1 < before.error


def test_the_error_of_a_known_case() -> None:
    """Ten rows at 0.95, five right; ten at 0.55, all right: (0.45 + 0.45) / 2."""
    found = reliability(np.repeat([0.95, 0.55], 10), np.arange(20) >= 5)
    assert found.error == pytest.approx(0.45)
    assert found.confidence.tolist() == pytest.approx([0.55, 0.95])
    assert found.accuracy.tolist() == pytest.approx([1.0, 0.5])
    assert found.count.tolist() == [10, 10]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=50))
def test_every_row_is_in_a_bin_and_the_error_is_a_share(rows: list[tuple[float, bool]]) -> None:
    confidences = np.array([row[0] for row in rows], float)
    correct = np.array([row[1] for row in rows], bool)
    found = reliability(confidences, correct)
    assert found.count.sum() == len(rows)
    assert len(found.count) <= BINS
    assert 0 <= found.error <= 1


def test_the_diagram_is_a_picture(tmp_path: Path) -> None:
    logits, labels = honest(100, seed=3)
    judged = _judge(logits, labels, 1.0)
    _draw(judged, judged, "a title", tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
