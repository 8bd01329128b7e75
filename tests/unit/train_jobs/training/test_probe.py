"""A probe is logistic regression, and the head that it makes of a classifier says the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.encoders import make_tiny_bert, make_tiny_distilbert, make_tiny_roberta
from train_jobs.training import probe
from train_jobs.training.encoders import load_classifier, parts_of
from train_jobs.training.trainer import features_of

MAKERS = {"bert": make_tiny_bert, "roberta": make_tiny_roberta, "distilbert": make_tiny_distilbert}


def rows(count: int, classes: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features (count, 8) of small spread around means that are a few spreads apart."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    means = np.random.default_rng(9).normal(0, 0.1, (classes, 8))
    return 3 + means[labels] + random.normal(0, 0.03, (count, 8)), labels


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_probe_finds_what_is_there(classes: int, activation: str) -> None:
    x, labels = rows(200, classes)
    made = probe.fit(x, labels, classes, activation)
    unseen, truth = rows(200, classes, seed=1)
    assert (made.logits(unseen).argmax(-1) == truth).mean() > 0.95


@pytest.mark.parametrize("kind", MAKERS)
def test_the_head_is_the_probe(tmp_path: Path, kind: str) -> None:
    model = load_classifier(str(MAKERS[kind](tmp_path)), list("abcd")).eval()
    ids = [list(range(20 + i, 30 + 2 * i)) for i in range(12)]
    features = features_of(model, ids, exact=True)
    activation = parts_of(model, 1).pooled_activation
    made = probe.fit(features, np.arange(12) % 4, 4, activation)
    made.put_into(model)
    with torch.inference_mode():
        said = [model(input_ids=torch.tensor([item])).logits[0].numpy() for item in ids]
    np.testing.assert_allclose(np.stack(said), made.logits(features), atol=2e-3, rtol=1e-3)


def test_a_class_without_rows_is_never_answered() -> None:
    x, labels = rows(60, 3)
    made = probe.fit(x[labels > 0], labels[labels > 0], 3)
    said = made.logits(x).argmax(-1)
    assert set(said.tolist()) == {1, 2}


def test_rows_of_one_class_are_no_error() -> None:
    x, _ = rows(10, 2)
    assert set(probe.fit(x, np.ones(10, np.int64), 3).logits(x).argmax(-1).tolist()) == {1}


@pytest.mark.parametrize("kind", MAKERS)
def test_features_are_what_the_head_reads(tmp_path: Path, kind: str) -> None:
    """In the order asked for, whatever a message is padded to."""
    model = load_classifier(str(MAKERS[kind](tmp_path)), list("abcde")).eval()
    ids = [list(range(20, 22 + (7 * i) % 40)) for i in range(70)]
    found = features_of(model, ids, exact=True)
    with torch.inference_mode():
        states = [model.base_model(input_ids=torch.tensor([item]))[0][0, 0] for item in ids]
    np.testing.assert_allclose(found, torch.stack(states), atol=1e-5)


def noisy(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features (count, 150), one of which says something of a label."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    x = random.normal(0, 1, (count, 150))
    x[:, 0] += 1.5 * labels
    return x, labels


def test_noise_is_not_learned_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """One penalty for all learned 300 noisy messages by heart, and left no error to learn from."""
    x, labels = noisy(150, 0)
    unseen, truth = noisy(600, 1)
    chosen = probe.fit(x, labels, 3).logits
    monkeypatch.setattr(probe, "_INVERSE_PENALTIES", (0.4,))
    fixed = probe.fit(x, labels, 3).logits
    assert (fixed(x).argmax(-1) == labels).mean() == 1.0
    assert log_loss(chosen(unseen), truth) < 0.9 * log_loss(fixed(unseen), truth)


def test_clean_labels_keep_the_weakest_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = rows(200, 5)
    chosen = probe.fit(x, labels, 5)
    monkeypatch.setattr(probe, "_INVERSE_PENALTIES", (0.4,))
    np.testing.assert_array_equal(chosen.weights, probe.fit(x, labels, 5).weights)


def log_loss(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    said = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(-said[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_handful_of_rows_makes_a_probe(count: int) -> None:
    x, labels = rows(count, 2)
    assert probe.fit(x, labels, 2).logits(x).shape == (count, 2)
