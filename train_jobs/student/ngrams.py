"""A second opinion on the edge's answer: token ids of `train` and their labels -> an Ngrams.

In: the messages that the edge learned from. Out: the table of the graph's output `ngram_margin`
(graph.py): by how much a linear classifier of n-grams prefers the class that the edge answers.

It shares nothing with the encoder but the tokenizer, so its mistakes are others. Logistic
regression on word pieces and pairs of them (Wang and Manning, ACL 2012, "Baselines and Bigrams"),
hashed into a fixed number of buckets (Weinberger et al., ICML 2009, arXiv:0902.2206) by Carter and
Wegman's (ax + b mod p) mod m (1979), and scaled by the length of the message. What was tried:
docs/edge-model.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cluster.bundles import TOKENIZER
from serve_app.model.tokenizer import TextTokenizer
from train_jobs.data import Dataset
from train_jobs.student.quantize import rounded
from train_jobs.training.encoders import max_tokens

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# A pair of ids is far past the prime, and far below 2^63.
STEP: Final = 1_640_531_527  # 2^32 over the golden ratio squared (Knuth, volume 3, 6.4)
PRIME: Final = 2**31 - 1
BITS: Final = 4
_MOST_BUCKETS: Final = 8192
# Of the 0.26 MB that were left, with 151 classes, of a tenth of the cloud model.
_MOST_BYTES: Final = 192 << 10
_MIN_BLOCK: Final = 16  # of GatherBlockQuantized
_INVERSE_PENALTY: Final = 30.0


@dataclass(frozen=True)
class Ngrams:
    """What each bucket's n-grams say for each class, as it reads after rounding to `BITS`.

    Its width is the number of classes, and one more if that is odd: two values share a byte. What
    nothing was learned of, that column too, is no better than any class in any bucket.
    """

    table: NDArray[np.float32]  # (buckets, width)

    @property
    def block(self) -> int:
        """Values that share a scale: a whole row."""
        return _block(self.table.shape[1])

    def margins(self, ids: Sequence[Sequence[int]], answered: Ints) -> Floats:
        """Of n token lists, the lead (n,) of the answered classes (n,) over the best other."""
        buckets = len(self.table)
        said = np.stack([self.table[hashed(item, buckets)].sum(0, np.float64) for item in ids])
        rows = np.arange(len(ids))
        own = said[rows, answered]
        said[rows, answered] = -np.inf
        return np.asarray((own - said.max(-1)) * _scales_of(ids))


def hashed(tokens: Sequence[int], buckets: int) -> Ints:
    """The buckets of a message's tokens, then of its pairs."""
    one = np.asarray(tokens, np.int64)
    return np.asarray(np.concatenate([one, one[:-1] * STEP + one[1:]]) % PRIME % buckets)


def scales(longest: int) -> Floats:
    """What the n-grams of a message of 0, 1, .. and so many tokens are multiplied by: were all
    different, their squares would sum to 1."""
    return np.asarray(np.maximum(2.0 * np.arange(longest + 1) - 1.0, 1.0) ** -0.5)


def fit(ids: Sequence[Sequence[int]], labels: Sequence[int], classes: int) -> Ngrams:
    """Args: ids: n token lists of `train`, with their labels (n,), numbers below `classes`.

    Rows of fewer than two classes teach nothing: every margin is 0.
    """
    width = classes + classes % 2
    buckets = min(_MOST_BUCKETS, _MOST_BYTES // (width // 2 + 5))  # a scale and a zero point
    known = np.unique(labels)
    table = np.zeros((buckets, width), np.float32)
    if len(known) > 1:
        weights = _learned(ids, labels, buckets)
        table[:] = weights.min(-1, keepdims=True)
        table[:, known] = weights
    return Ngrams(rounded(table, BITS, _block(width)))


def _learned(ids: Sequence[Sequence[int]], labels: Sequence[int], buckets: int) -> Floats:
    """Weights (buckets, classes seen)."""
    from sklearn.linear_model import LogisticRegression  # a second of import

    # No intercept: the special tokens are in every message.
    model = LogisticRegression(C=_INVERSE_PENALTY, fit_intercept=False, max_iter=300)
    with threadpool_limits(limits=1, user_api="blas"):  # sums in one order on any machine
        weights = model.fit(_counted(ids, buckets), np.asarray(labels)).coef_
    # Of two classes scikit-learn keeps what the second has more than the first.
    return np.asarray((weights if len(weights) > 1 else np.vstack([-weights, weights]) / 2).T)


def _counted(ids: Sequence[Sequence[int]], buckets: int) -> Any:
    """Scaled counts (n, buckets), sparse."""
    each = [hashed(item, buckets) for item in ids]
    sizes = [len(item) for item in each]
    made = sparse.csr_matrix(
        (np.repeat(_scales_of(ids), sizes), np.concatenate(each), np.cumsum([0, *sizes])),
        shape=(len(ids), buckets),
    )
    made.sum_duplicates()
    return made


def _scales_of(ids: Sequence[Sequence[int]]) -> Floats:
    lengths = [len(item) for item in ids]
    return np.asarray(scales(max(lengths))[lengths])


def _block(width: int) -> int:
    return int(max(_MIN_BLOCK, 1 << (width - 1).bit_length()))


def of(source: Path, dataset: Dataset) -> Ngrams:
    """For the classifier in `source`, Hugging Face's layout: what it learned from, as it reads."""
    tokenizer = TextTokenizer.from_file(source / TOKENIZER, max_tokens(str(source)))
    texts, labels = dataset.labelled("train")
    return fit(tokenizer.encode(texts), labels, len(dataset.labels))
