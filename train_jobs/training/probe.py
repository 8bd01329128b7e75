"""A linear probe: features of a frozen encoder and their labels -> the head that they ask for.

Fine-tuning from such a head instead of a random one keeps what the encoder knows, and needs a
fraction of the steps (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution"). How well the probe does without any fine-tuning tells how much
of a domain an encoder knows already.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from train_jobs.training.encoders import parts_of

Floats = NDArray[np.float64]
# Of features whose deviation is about a half, weakest penalty first.
_INVERSE_PENALTIES: Final = (0.4, 0.1, 0.03, 0.01)
_STEPS: Final = 200
_FOLDS: Final = 5
_FEW_ROWS: Final = 2000  # up to which every fold is held out once; of more one fold says enough
_LEAST_SPREAD: Final = 1e-6
# A feature is standardised, halved and sent through the head's activation: nearly straight for
# `tanh`; lifted so far that `relu` cuts next to nothing.
_LIFT: Final = {"tanh": 0.0, "relu": 2.0}
_ACTIVATION: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}
_ABSENT: Final = -10.0  # the bias of a class without rows
_UNLIKELY: Final = 1e-6


@dataclass(frozen=True)
class Probe:
    """Scores (n, classes) of features (n, H): of `activation(x * scale + shift)`, linear."""

    scale: Floats  # (H,)
    shift: Floats  # (H,)
    activation: str
    weights: Floats  # (classes, H)
    bias: Floats  # (classes,)
    inverse_penalty: float

    def logits(self, features: NDArray[Any]) -> Floats:
        hidden = _ACTIVATION[self.activation](features * self.scale + self.shift)
        return np.asarray(hidden @ self.weights.T + self.bias)

    def put_into(self, model: Any) -> None:
        """Makes it the head of a classifier, in place."""
        parts = parts_of(model, 1)
        assert parts.pooled_activation == self.activation
        with torch.no_grad():
            for value, found in (
                (parts.pooled.weight, np.diag(self.scale)),
                (parts.pooled.bias, self.shift),
                (parts.classifier.weight, self.weights),
                (parts.classifier.bias, self.bias),
            ):
                value.copy_(torch.as_tensor(found))


def fit(
    features: NDArray[Any],
    labels: NDArray[np.int64],
    classes: int,
    activation: str = "tanh",
    inverse_penalty: float | None = None,
) -> Probe:
    """Logistic regression on standardised features (n, H), with labels (n,) below `classes`.

    Args:
        activation: of the head whose place it is to take.
        inverse_penalty: scikit-learn's `C`; None: that whose log-loss on held-out folds is least.
    """
    x = np.asarray(features, np.float64)
    scale = 0.5 / np.maximum(x.std(0), _LEAST_SPREAD)
    shift = _LIFT[activation] - x.mean(0) * scale
    hidden = _ACTIVATION[activation](x * scale + shift)
    known = np.unique(labels)
    weights, bias = np.zeros((classes, x.shape[1])), np.full(classes, _ABSENT)
    if len(known) == 1:
        bias[known] = 0.0
        return Probe(scale, shift, activation, weights, bias, _INVERSE_PENALTIES[0])
    hidden = hidden.astype(np.float32)  # half the time: 0.40 -> 0.18 s, 6,576 x 384, 77 classes
    inverse_penalty = inverse_penalty or _penalty(hidden, labels)
    model = _regression(hidden, labels, inverse_penalty)
    found, offset = model.coef_, model.intercept_
    if len(known) == 2:  # of two classes scikit-learn keeps what the second has more
        found, offset = np.vstack([-found, found]) / 2, np.concatenate([-offset, offset]) / 2
    weights[known], bias[known] = found, offset
    return Probe(scale, shift, activation, weights, bias, inverse_penalty)


def _regression(hidden: NDArray[Any], labels: NDArray[np.int64], inverse_penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression  # a second of import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that has not quite converged is as good
        return LogisticRegression(C=inverse_penalty, max_iter=_STEPS).fit(hidden, labels)


def _penalty(hidden: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The inverse penalty whose log-loss on held-out folds is least; it ends at the first rise.

    A probe that has learned its rows by heart leaves nothing for fine-tuning to learn.
    """
    fold = np.random.default_rng(0).permutation(len(labels)) % _FOLDS
    held_out = range(_FOLDS if len(labels) <= _FEW_ROWS else 1)
    best, best_loss = _INVERSE_PENALTIES[0], np.inf
    for inverse_penalty in _INVERSE_PENALTIES:
        losses = [_log_loss(hidden, labels, fold != number, inverse_penalty) for number in held_out]
        if not np.mean(losses) < best_loss:
            break
        best, best_loss = inverse_penalty, float(np.mean(losses))
    return best


def _log_loss(
    hidden: NDArray[Any],
    labels: NDArray[np.int64],
    fitted: NDArray[np.bool_],
    inverse_penalty: float,
) -> float:
    """On the rows that are not fitted on; a class that is new there counts as unlikely."""
    if len(np.unique(labels[fitted])) == 1 or fitted.all():
        return np.inf
    model = _regression(hidden[fitted], labels[fitted], inverse_penalty)
    said = np.full((int((~fitted).sum()), int(labels.max()) + 1), _UNLIKELY)
    said[:, model.classes_] = np.maximum(model.predict_proba(hidden[~fitted]), _UNLIKELY)
    return float(-np.log(said[np.arange(len(said)), labels[~fitted]]).mean())
