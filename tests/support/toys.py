"""A toy edge/cloud pair made in seconds, without torch: a bag of words as an ONNX graph.

The toy edge knows half of the words that the toy cloud knows, so it is unsure of the rest.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cluster.bundles import (
    GUARD,
    MODEL,
    MODEL_ANY,
    DatasetRef,
    Finished,
    GoldenRow,
    Metric,
    ModelBundle,
    Role,
    write_bundle,
)
from cluster.files import write_json
from serve_app.guard.config import BUILT_IN, GuardConfig
from serve_app.model.classifier import OnnxClassifier

LABELS = ("negative", "neutral", "positive")
WORDS = {
    "negative": ("awful", "broken", "late", "angry", "useless", "rude"),
    "neutral": ("where", "when", "order", "account", "change", "question"),
    "positive": ("great", "thanks", "love", "fast", "perfect", "friendly"),
}
DATASET = DatasetRef(fingerprint="toy", rows={"train": 18})


def _tokenizer(path: Path) -> dict[str, int]:
    words = [word for group in WORDS.values() for word in group]
    vocabulary = {"[UNK]": 0, **{word: index + 1 for index, word in enumerate(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return vocabulary


def _graph(
    path: Path, embedding: np.ndarray, nan_token: int | None = None, others: Sequence[str] = ()
) -> None:
    """The sum over tokens of embedding[token]; every unknown word pulls towards no label.

    Args:
        others: more outputs: `distance`, the number of unknown words; `ngram_margin`, its negative.
    """
    table = embedding.astype(np.float32)
    if nan_token is not None:
        table[nan_token] = np.nan
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["embedded", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])]
    if others:
        nodes += [
            helper.make_node("Gather", ["strange", "input_ids"], ["unknown"]),
            helper.make_node("Mul", ["unknown", "mask"], ["counted"]),
            helper.make_node("ReduceSum", ["counted", "middle"], ["distance"], keepdims=0),
            helper.make_node("Neg", ["distance"], ["ngram_margin"]),
        ]
        outputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in others
        ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        outputs,
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "middle"),
            numpy_helper.from_array(np.eye(len(table), dtype=np.float32)[0], "strange"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def make_bundle(
    folder: Path,
    role: Role,
    *,
    known_share: float | None = None,
    nan_word: str | None = None,
    needs: Sequence[str] = (),
    anywhere: bool = False,
    others: Sequence[str] = (),
    guard: GuardConfig = BUILT_IN,
) -> ModelBundle:
    """A toy bundle in `folder/role`.

    Args:
        nan_word: the model answers NaN to that word.
        needs: CPU flags that the manifest says model.onnx needs; the toy computes without.
        anywhere: a second artifact, less sure of everything and with a temperature of 2.
        others: `distance` and `ngram_margin`, if the model tells them too.
        guard: what its training data was masked with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = known_share if known_share is not None else (0.5 if role == "edge" else 1.0)
    vocabulary = _tokenizer(folder / f"{role}-tokenizer.json")
    embedding = np.zeros((len(vocabulary), len(LABELS)))
    for index, label in enumerate(LABELS):
        for rank, word in enumerate(WORDS[label]):
            embedding[vocabulary[word], index] = 4.0 if rank < known * len(WORDS[label]) else 0.4
    nan_token = vocabulary[nan_word] if nan_word else None
    model = folder / f"{role}.onnx"
    _graph(model, embedding, nan_token, others)
    second = folder / f"{role}-any.onnx"
    _graph(second, embedding / 2)

    guarded = folder / GUARD
    write_json(guarded, guard.model_dump(mode="json"))

    def write(golden: list[GoldenRow], golden_any: list[GoldenRow]) -> ModelBundle:
        return write_bundle(
            folder / role,
            role=role,
            model=model,
            tokenizer=folder / f"{role}-tokenizer.json",
            labels=LABELS,
            temperature=1.0,
            max_tokens=64,
            dataset=DATASET,
            metrics={"accuracy": Metric(value=0.9, split="test", rows=100)},
            recipe={"toy": True},
            golden=golden,
            needs=needs,
            anywhere=Finished(second, 2.0, golden_any) if anywhere else None,
            extras=[] if guard == BUILT_IN else [guarded],
        )

    texts = [f"{group[0]} {group[1]}" for group in WORDS.values()]
    draft = write([], [])
    names = (MODEL, MODEL_ANY) if anywhere else (MODEL,)
    rows = [OnnxClassifier.of(draft, artifact=name).golden_rows(texts) for name in names]
    return write(rows[0], rows[-1])


def message(label: str, hard: bool = False, extra: str = "") -> str:
    """A text that the toy cloud gets right; a `hard` one leaves the toy edge unsure."""
    words = WORDS[label][3:5] if hard else WORDS[label][:2]
    return " ".join((*words, extra)).strip()


def traffic(
    rows: int, seed: int = 0, *, hard_share: float = 0.2, tricky_share: float = 0.03
) -> tuple[list[str], list[str]]:
    """Distinct texts and their labels. The toy cloud gets all of them right.

    Args:
        hard_share: the toy edge is right about those, and unsure.
        tricky_share: it is wrong about those, and nearly sure.
    """
    dice = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(rows):
        kind, which = dice.random(), int(dice.integers(len(LABELS)))
        label, other = LABELS[which], LABELS[(which + 1) % len(LABELS)]
        words = WORDS[label][3:5] if kind < hard_share + tricky_share else WORDS[label][:2]
        lure = WORDS[other][:1] if kind < tricky_share else ()
        # The toys know no word that is made of a seed and a number, so it only tells texts apart.
        mark = "".join(chr(ord("a") + int(digit)) for digit in f"{seed:02d}{number:06d}")
        texts.append(" ".join((*words, *lure, mark)))
        labels.append(label)
    return texts, labels
