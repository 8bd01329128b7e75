"""How far a message is from what a classifier was trained on: features of `train` -> a Domain.

In: features of the messages of `train` and `calibration`: the last layer's one position, which the
classifier's head reads. Out: the matrices of the graph's output `distance` (graph.py).

The distance is Mahalanobis' to the nearest class mean, with one covariance within classes for all
(Lee et al., NeurIPS 2018, arXiv:1807.03888). The covariance is shrunk towards a sphere as far as
few rows ask for it (Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation"), and
kept as its leading directions and a sphere for the rest (Tipping and Bishop 1999, "Probabilistic
principal component analysis"), an eighth of its bytes. 1.0 is as far as the furthest 1% of
`calibration`. What was tried: docs/edge-model.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.bundles import TOKENIZER
from serve_app.model.tokenizer import TextTokenizer
from train_jobs.data import Dataset
from train_jobs.training.encoders import max_tokens, trained_classifier
from train_jobs.training.trainer import features_of

Floats = NDArray[np.float64]
_DIRECTIONS: Final = 48
_CALIBRATION_SHARE: Final = 0.99  # of messages that are nearer than 1.0
# Of the features' mean square: smaller spreads would drown in the rounding of 32 bits.
_MIN_SPREAD: Final = 1e-4


@dataclass(frozen=True)
class Domain:
    """sqrt(weight |x|^2 - |x directions|^2 + min(x classes + offsets)), for features x (H,).

    That is the Mahalanobis distance multiplied out, its scale included.
    """

    weight: float
    directions: Floats  # (H, k)
    classes: Floats  # (H, classes)
    offsets: Floats  # (classes,)

    def distances(self, features: NDArray[Any]) -> Floats:
        """Distances (n,) of features (n, H)."""
        x = np.asarray(features, np.float64)
        own = self.weight * (x**2).sum(-1) - ((x @ self.directions) ** 2).sum(-1)
        nearest = (x @ self.classes + self.offsets).min(-1)
        return np.asarray(np.sqrt(np.maximum(own + nearest, 0)))

    def scaled(self, factor: float) -> "Domain":
        """The same with every distance multiplied by a factor."""
        return Domain(
            self.weight * factor**2,
            self.directions * factor,
            self.classes * factor**2,
            self.offsets * factor**2,
        )


def fit(features: NDArray[Any], labels: NDArray[Any], calibration: NDArray[Any]) -> Domain:
    """Args: features: (n, H) of `train`, with labels (n,); calibration: (m, H).

    A class without rows has no mean: its messages are as near as the others' means are.

    Raises:
        ValueError: no row of one of them.
    """
    if not len(features) or not len(calibration):
        raise ValueError(
            f"A domain is fitted on rows of train and of calibration; there are {len(features)} "
            f"and {len(calibration)}."
        )
    x = np.asarray(features, np.float64)
    _, each = np.unique(labels, return_inverse=True)
    means = np.stack([x[each == number].mean(0) for number in range(each.max() + 1)])
    values, vectors = _spread(x - means[each], len(x) - len(means), float((x**2).mean()))
    domain = _domain(means, values, vectors)
    furthest = float(np.quantile(domain.distances(calibration), _CALIBRATION_SHARE))
    return domain.scaled(1 / max(furthest, 1.0))  # less than one deviation is rounding


def _spread(rest: Floats, free: int, mean_square: float) -> tuple[Floats, Floats]:
    """Eigenvalues (H,) and eigenvectors (H, H) of the covariance within classes, leading first.

    Args: rest: (n, H), rows less their class mean; free: degrees of freedom.
    """
    width = rest.shape[1]
    covariance = rest.T @ rest / max(free, 1)
    total, square = float(np.trace(covariance)), float((covariance**2).sum())
    above = (free + 1 - 2 / width) * (square - total**2 / width)
    asked = (1 - 2 / width) * square + total**2
    shrinkage = min(1.0, asked / above) if above > 0 else 1.0
    values, vectors = np.linalg.eigh(covariance)
    values = (1 - shrinkage) * values + shrinkage * total / width
    floor = max(_MIN_SPREAD * mean_square, float(np.finfo(np.float32).tiny) ** 0.5)
    return np.maximum(values, floor)[::-1], vectors[:, ::-1]


def _domain(means: Floats, values: Floats, vectors: Floats) -> Domain:
    """The unscaled domain of class means (C, H) and a covariance's eigenvalues and eigenvectors."""
    kept = min(_DIRECTIONS, len(values) - 1)
    weight = 1 / float(values[kept:].mean())
    directions = vectors[:, :kept] * np.sqrt(np.maximum(weight - 1 / values[:kept], 0))
    pull = weight * means - means @ directions @ directions.T  # inverse covariance x means
    return Domain(weight, directions, -2 * pull.T, (pull * means).sum(-1))


def of(source: Path, dataset: Dataset) -> Domain:
    """The domain of the classifier in `source`, Hugging Face's layout, and what it learned from."""
    model = trained_classifier(source)
    tokenizer = TextTokenizer.from_file(source / TOKENIZER, max_tokens(str(source)))
    texts, labels = dataset.labelled("train")
    train = features_of(model, tokenizer.encode(texts), exact=True)
    calibration = features_of(model, tokenizer.encode(dataset.texts("calibration")), exact=True)
    return fit(train, np.array(labels), calibration)
