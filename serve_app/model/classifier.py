"""OnnxClassifier: bundle -> list of prepared texts -> list of Predictions.

One message per run, always. Dynamic int8 scales activations over the whole batch, so a message's
confidence would depend on its batch-mates and on padding; one at a time it is exact, and on a CPU
at these lengths as fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cluster.bundles import MODEL, GoldenRow, ModelBundle, load_bundle
from cluster.errors import BundleError, ModelOutputError
from serve_app.contracts import Prediction
from serve_app.model.cpu import cpu_flags
from serve_app.model.tokenizer import TextTokenizer

Floats = NDArray[np.float64]
# The fused SkipLayerNormalization takes 52 us of an int8 student's 800, the parts of it 7.
_SLOW: Final = ["SkipLayerNormFusion"]
MASK: Final = "attention_mask"
_TYPES: Final = "token_type_ids"
# Outputs that a model may have beside its logits, which come first (contracts.Prediction).
DISTANCE: Final = "distance"
NGRAM_MARGIN: Final = "ngram_margin"
# Kernels differ in the last bits between CPUs; a saturating int8 kernel differs by far more. Of
# figures that are no share it is relative, from 1 upwards.
GOLDEN_TOLERANCE: Final = 0.01


class Outputs(NamedTuple):
    """What a model says of n messages: logits (n, classes), and else (n,).

    A model that does not measure one of the others says 0.0.
    """

    logits: NDArray[np.float32]
    distance: NDArray[np.float32]
    ngram_margin: NDArray[np.float32]


@dataclass(frozen=True)
class OnnxScorer:
    """An ONNX classification model and its tokenizer: prepared texts -> logits, and the rest."""

    session: ort.InferenceSession
    tokenizer: TextTokenizer
    input_names: frozenset[str]
    output_names: tuple[str, ...]

    @classmethod
    def open(cls, model: Path, tokenizer: Path, max_tokens: int, threads: int = 1) -> "OnnxScorer":
        """Args: threads: of ONNX Runtime, which would size its pool to the host if left alone."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW
            )
        except Exception as error:
            raise BundleError(f"ONNX Runtime cannot load {model}: {error}") from error
        inputs = frozenset(item.name for item in session.get_inputs())
        outputs = tuple(item.name for item in session.get_outputs())
        return cls(session, TextTokenizer.from_file(tokenizer, max_tokens), inputs, outputs)

    def feed(self, ids: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        """The model's inputs for n token lists, padded to the longest of them if it has a mask."""
        width = max(map(len, ids))
        even = all(len(item) == width for item in ids)
        if not even and MASK not in self.input_names:
            raise ValueError("This model takes no padding: messages of one length, or one by one.")
        padded = ids if even else [[*item, *[0] * (width - len(item))] for item in ids]
        tokens = np.array(padded, np.int64)
        made = {"input_ids": tokens}
        if MASK in self.input_names:
            lengths = np.array([len(item) for item in ids])
            made[MASK] = (np.arange(width) < lengths[:, None]).astype(np.int64)
        if _TYPES in self.input_names:
            made[_TYPES] = np.zeros_like(tokens)
        return made

    def outputs(self, ids: Sequence[Sequence[int]]) -> Outputs:
        """Of n token lists in one run."""
        logits, *others = self.session.run(None, self.feed(ids))
        found = dict(zip(self.output_names[1:], others, strict=True))
        none = np.zeros(len(ids), np.float32)
        return Outputs(
            np.asarray(logits, np.float32),
            np.asarray(found.get(DISTANCE, none), np.float32),
            np.asarray(found.get(NGRAM_MARGIN, none), np.float32),
        )

    def run(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits (n, classes) of n token lists in one run."""
        return self.outputs(ids).logits

    def answers(self, texts: Sequence[str]) -> Outputs:
        """Of n texts, each message run by itself."""
        made = [self.outputs([ids]) for ids in self.tokenizer.encode(texts)]
        return Outputs(*map(np.concatenate, zip(*made, strict=True)))

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Logits (n, classes), each message run by itself."""
        return self.answers(texts).logits


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> Floats:
    """Probabilities along the last axis, in float64, of logits divided by a temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    exp = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def to_predictions(
    logits: NDArray[np.floating[Any]],
    labels: Sequence[str],
    temperature: float = 1.0,
    distances: NDArray[np.floating[Any]] | None = None,
    ngram_margins: NDArray[np.floating[Any]] | None = None,
) -> list[Prediction]:
    """Logits (n, classes), and else (n,) -> one Prediction per row, whatever the others are."""
    none = np.zeros(len(logits))
    shares = softmax(logits, temperature)
    ordered = np.partition(shares, -2, axis=-1)
    # A share that is 0 has no logarithm, and adds nothing.
    parts = shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = -parts.sum(axis=-1) / log(len(labels))
    columns = (
        shares.argmax(axis=-1),
        ordered[:, -1],
        ordered[:, -1] - ordered[:, -2],
        entropy.clip(0.0, 1.0),
        np.asarray(logits, np.float64).max(axis=-1) / temperature - np.log(ordered[:, -1]),
        none if distances is None else distances,
        none if ngram_margins is None else ngram_margins,
    )
    return [
        Prediction(labels[best], confidence, margin, spread, row.tobytes(), *others)
        for row, best, confidence, margin, spread, *others in zip(
            shares.astype("<f8"), *(column.tolist() for column in columns), strict=True
        )
    ]


@dataclass(frozen=True)
class OnnxClassifier:
    """A loaded bundle that answers."""

    scorer: OnnxScorer
    labels: tuple[str, ...]
    temperature: float
    sha256: str
    artifact: str = MODEL

    @classmethod
    def load(cls, path: Path, sha256: str | None = None, threads: int = 1) -> "OnnxClassifier":
        """Loads and verifies a bundle.

        Raises:
            BundleError: it is broken, another one than promised, or does not run.
        """
        return cls.of(load_bundle(path, sha256), threads)

    @classmethod
    def of(
        cls, bundle: ModelBundle, threads: int = 1, artifact: str | None = None
    ) -> "OnnxClassifier":
        """Args: artifact: a model file of the bundle; None: the one for this CPU."""
        card = bundle.manifest
        named = bundle.artifact(cpu_flags()) if artifact is None else bundle.named(artifact)
        scorer = OnnxScorer.open(
            bundle.path / named.model, bundle.tokenizer_path, card.max_tokens, threads
        )
        return cls(scorer, card.labels, named.temperature, bundle.sha256, named.model)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One Prediction per prepared text, in order.

        Raises:
            ModelOutputError: the model answered with NaN or infinity, or with the wrong classes.
        """
        if not texts:
            return []
        logits, *others = answers = self.scorer.answers(texts)
        if logits.shape != (len(texts), len(self.labels)):
            raise ModelOutputError(
                f"The model answered with shape {logits.shape} to {len(texts)} texts and "
                f"{len(self.labels)} labels."
            )
        for name, numbers in zip(answers._fields[1:], others, strict=True):
            if numbers.shape != (len(texts),):
                raise ModelOutputError(
                    f"The model's output {name!r} has shape {numbers.shape}; one number for each "
                    f"of the {len(texts)} texts was expected."
                )
        if not all(np.isfinite(numbers).all() for numbers in answers):
            raise ModelOutputError("The model answered with NaN or infinity.")
        return to_predictions(logits, self.labels, self.temperature, *others)

    def golden_rows(self, texts: Sequence[str]) -> list[GoldenRow]:
        """What this model says to a few texts, to be kept in its bundle."""
        return [
            GoldenRow(
                text=text,
                label=made.label,
                probabilities=made.probabilities,
                energy=made.energy,
                distance=made.distance,
                ngram_margin=made.ngram_margin,
            )
            for text, made in zip(texts, self.predict(texts), strict=True)
        ]

    def check_golden(self, rows: Sequence[GoldenRow]) -> None:
        """Raises BundleError unless this machine computes what was measured where it was made."""
        answers = self.predict([row.text for row in rows])
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            name, gap = max(_gaps(row, answer).items(), key=lambda item: item[1])
            if answer.label != row.label or gap > GOLDEN_TOLERANCE:
                raise BundleError(
                    f"Golden message {index} of bundle {self.sha256[:12]} came out as "
                    f"{answer.label} with {name} off by {gap:.4f}; {row.label} within "
                    f"{GOLDEN_TOLERANCE} was expected. This CPU does not compute what was "
                    "certified."
                )


def _gaps(row: GoldenRow, answer: Prediction) -> dict[str, float]:
    """How far an answer is from the golden one, in each figure that a policy can read."""
    shares = zip(row.probabilities, answer.probabilities, strict=True)
    pairs = {
        name: (getattr(row, name), getattr(answer, name))
        for name in ("energy", DISTANCE, NGRAM_MARGIN)
    }
    return {
        "probabilities": max(abs(a - b) for a, b in shares),
        **{name: abs(a - b) / max(1.0, abs(a)) for name, (a, b) in pairs.items()},
    }
