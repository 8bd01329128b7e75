"""The served graph answers what the trained model answers, and takes nothing but a message."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cluster.bundles import TOKENIZER
from serve_app.classifier import OnnxScorer
from tests.encoders import make_tiny_bert, make_tiny_distilbert, make_tiny_roberta
from train_jobs import served
from train_jobs.encoders import ACTIVATIONS, save_tokenizer

MAKERS = {"bert": make_tiny_bert, "roberta": make_tiny_roberta, "distilbert": make_tiny_distilbert}
FIELD = {"bert": "hidden_act", "roberta": "hidden_act", "distilbert": "activation"}


def made(kind: str, folder: Path, activation: str = "gelu") -> tuple[Any, OnnxScorer]:
    """A classifier of random weights, every bias and norm among them, and its served graph."""
    base = MAKERS[kind](folder / "base")
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(torch.randn_like(value) * (0.02 if "embeddings" in name else 0.2))
    model.save_pretrained(folder / "model")
    save_tokenizer(str(base), folder)
    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), FIELD[kind]: activation}))
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    served.write(folder / "model", folder / "model.onnx")
    return model, OnnxScorer.open(folder / "model.onnx", folder / TOKENIZER, 128)


def answers(model: Any, ids: list[list[int]]) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(model(input_ids=torch.tensor(ids)).logits)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", MAKERS)
def test_the_graph_is_the_same_classifier(tmp_path: Path, kind: str, activation: str) -> None:
    model, scorer = made(kind, tmp_path, activation)
    for length in (1, 2, 9, 128):
        ids = [list(range(20, 20 + length)), list(range(300, 300 + length))]
        expected = answers(model, ids)
        assert np.ptp(expected) > 0.5
        np.testing.assert_allclose(scorer.run(ids), expected, atol=2e-4, rtol=1e-3)


def test_it_takes_tokens_only_and_refuses_to_pad(tmp_path: Path) -> None:
    _, scorer = made("bert", tmp_path)
    assert scorer.input_names == {"input_ids"}
    with pytest.raises(ValueError, match="takes no padding"):
        scorer.run([[2, 20, 3], [2, 3]])


def test_it_is_a_valid_model_of_few_nodes(tmp_path: Path) -> None:
    made("bert", tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert len(model.graph.node) < 20 * 4 + 15
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Transpose", "Reshape", "Where", "Expand", "Softmax"}
