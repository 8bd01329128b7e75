"""The edge model as a peer runs it: texts -> labels and confidences, with nothing of ours imported.

The same file, the same session options and one message per run, as ours does; it leaves out what is
ours alone (normalising, masking, deciding, writing down).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer


class Model:
    """`model(texts)` -> [{"label": ..., "confidence": ...}].

    Args:
        artifact: a model file of the bundle, or the absolute path of another one for its labels.
        plain: with the graph as ONNX Runtime optimises it when left alone, not as ours does.
        padded: tokens that every message is padded and cut to; None: cut as the bundle says.
    """

    def __init__(
        self, bundle: Path, artifact: str, padded: int | None = None, *, plain: bool = False
    ) -> None:
        card = json.loads((bundle / "manifest.json").read_text())
        other = card.get("anywhere") or {}
        chosen = other if other.get("model") == artifact else card
        self._labels: list[str] = card["labels"]
        self._temperature = float(chosen["temperature"])
        self._tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._tokenizer.enable_truncation(padded or card["max_tokens"])
        self._tokenizer.no_padding()
        if padded:
            self._tokenizer.enable_padding(length=padded)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(bundle / artifact), options, providers=["CPUExecutionProvider"],
            disabled_optimizers=[] if plain else ["SkipLayerNormFusion"],
        )  # fmt: skip
        self._inputs = {item.name for item in self._session.get_inputs()}

    def __call__(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [self._one(item) for item in self._tokenizer.encode_batch_fast(list(texts))]

    def _one(self, encoded: Encoding) -> dict[str, Any]:
        feed = {"input_ids": np.array([encoded.ids], np.int64)}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = np.array([encoded.attention_mask], np.int64)
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        logits = self._session.run(None, feed)[0][0]
        return answer(logits, self._labels, self._temperature)


def answer(logits: NDArray[Any], labels: Sequence[str], temperature: float) -> dict[str, Any]:
    """One row of logits (classes,) -> its label and calibrated confidence."""
    scaled = logits.astype(np.float64) / temperature
    exp = np.exp(scaled - scaled.max())
    best = int(exp.argmax())
    return {"label": labels[best], "confidence": float(exp[best] / exp.sum())}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """What every peer is given."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--edge", type=Path, required=True, help="the edge bundle")
    made.add_argument("--artifact", default="model.onnx", help="its model file for this CPU")
    return made
