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
_INVERSE_PENALTY: Final = 0.4  # of features whose deviation is about a half
_STEPS: Final = 200
_LEAST_SPREAD: Final = 1e-6
# A feature is standardised, halved and sent through the head's activation: nearly straight for
# `tanh`; lifted so far that `relu` cuts next to nothing.
_LIFT: Final = {"tanh": 0.0, "relu": 2.0}
_ACTIVATION: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}
_ABSENT: Final = -10.0  # the bias of a class without rows


@dataclass(frozen=True)
class Probe:
    """Scores (n, classes) of features (n, H): of `activation(x * scale + shift)`, linear."""

    scale: Floats  # (H,)
    shift: Floats  # (H,)
    activation: str
    weights: Floats  # (classes, H)
    bias: Floats  # (classes,)

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
    features: NDArray[Any], labels: NDArray[np.int64], classes: int, activation: str = "tanh"
) -> Probe:
    """Logistic regression on standardised features (n, H), with labels (n,) below `classes`.

    Args:
        activation: of the head whose place it is to take.
    """
    from sklearn.linear_model import LogisticRegression  # a second of import

    x = np.asarray(features, np.float64)
    scale = 0.5 / np.maximum(x.std(0), _LEAST_SPREAD)
    shift = _LIFT[activation] - x.mean(0) * scale
    hidden = _ACTIVATION[activation](x * scale + shift)
    known = np.unique(labels)
    weights, bias = np.zeros((classes, x.shape[1])), np.full(classes, _ABSENT)
    if len(known) == 1:
        bias[known] = 0.0
        return Probe(scale, shift, activation, weights, bias)
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that has not quite converged is as good
        model.fit(hidden, labels)
    found, offset = model.coef_, model.intercept_
    if len(known) == 2:  # of two classes scikit-learn keeps what the second has more
        found, offset = np.vstack([-found, found]) / 2, np.concatenate([-offset, offset]) / 2
    weights[known], bias[known] = found, offset
    return Probe(scale, shift, activation, weights, bias)
