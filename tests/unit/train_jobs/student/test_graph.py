"""The served graph answers what the trained model answers, and takes nothing but a message."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from cluster.bundles import TOKENIZER
from serve_app.model.classifier import OnnxScorer
from tests.support.encoders import make_tiny_bert, make_tiny_distilbert, make_tiny_roberta
from train_jobs.student import graph as served
from train_jobs.student.domain import Domain, fit
from train_jobs.student.ngrams import Ngrams
from train_jobs.student.ngrams import fit as fit_ngrams
from train_jobs.training.encoders import (
    ACTIVATIONS,
    load_classifier,
    save_tokenizer,
    trained_classifier,
)
from train_jobs.training.trainer import features_of

MAKERS = {"bert": make_tiny_bert, "roberta": make_tiny_roberta, "distilbert": make_tiny_distilbert}
FIELD = {"bert": "hidden_act", "roberta": "hidden_act", "distilbert": "activation"}


def made(kind: str, folder: Path, activation: str = "gelu") -> tuple[Any, OnnxScorer]:
    """A classifier of random weights, every bias and norm among them, and its served graph."""
    base = MAKERS[kind](folder / "base")
    torch.manual_seed(3)
    model = load_classifier(str(base), list("abcde"))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(torch.randn_like(value) * (0.02 if "embeddings" in name else 0.2))
    model.save_pretrained(folder / "model")
    save_tokenizer(str(base), folder)
    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), FIELD[kind]: activation}))
    model = trained_classifier(folder / "model")
    served.write(folder / "model", folder / "model.onnx")
    return model, OnnxScorer.open(folder / "model.onnx", folder / TOKENIZER, 128)


def domain_of(model: Any) -> Domain:
    """Fitted on messages of random pieces, of two classes."""
    random = np.random.default_rng(0)
    seen = features_of(model, random.integers(20, 700, (90, 9)).tolist())
    return fit(seen, np.arange(90) % 2, seen)


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


@pytest.mark.parametrize("kind", MAKERS)
def test_the_distance_is_the_domains(tmp_path: Path, kind: str) -> None:
    """A message among others of its length too; and the logits stay the same to the last bit."""
    model, plain = made(kind, tmp_path)
    domain = domain_of(model)
    served.write(tmp_path / "model", tmp_path / "measures.onnx", domain)
    scorer = OnnxScorer.open(tmp_path / "measures.onnx", tmp_path / TOKENIZER, 128)
    assert scorer.output_names == ("logits", "distance")
    for length in (1, 9, 128):
        ids = np.random.default_rng(length).integers(20, 700, (5, length)).tolist()
        logits, distances, _ = scorer.outputs(ids)
        assert np.array_equal(logits, plain.run(ids))
        expected = domain.distances(features_of(model, ids, exact=True))
        assert distances.shape == (5,)
        assert np.ptp(expected) > 0.05
        np.testing.assert_allclose(distances, expected, rtol=2e-3, atol=2e-3)


def test_the_distance_adds_few_nodes(tmp_path: Path) -> None:
    model, _ = made("bert", tmp_path)
    plain = onnx.load(tmp_path / "model.onnx")
    assert [item.name for item in plain.graph.output] == ["logits"]
    served.write(tmp_path / "model", tmp_path / "measures.onnx", domain_of(model))
    measures = onnx.load(tmp_path / "measures.onnx")
    onnx.checker.check_model(measures)
    added = [node.name for node in measures.graph.node][len(plain.graph.node) :]
    assert len(added) == 11
    assert all(name.startswith("distance") for name in added)


def ngrams_of(classes: int = 5) -> Ngrams:
    """Of messages of random pieces, the last class unseen."""
    ids = np.random.default_rng(1).integers(20, 700, (80, 9))
    return fit_ngrams(ids.tolist(), (np.arange(80) % (classes - 1)).tolist(), classes)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_ngram_margin_is_that_of_the_answer(tmp_path: Path, kind: str) -> None:
    """In a batch too; a message of nothing but special tokens, and the longest that there is."""
    model, plain = made(kind, tmp_path)
    ngrams = ngrams_of()
    served.write(tmp_path / "model", tmp_path / "seconds.onnx", domain_of(model), ngrams)
    scorer = OnnxScorer.open(tmp_path / "seconds.onnx", tmp_path / TOKENIZER, 128)
    assert scorer.output_names == ("logits", "distance", "ngram_margin")
    for length in (1, 2, 3, 9, 128):
        ids = np.random.default_rng(length).integers(0, 700, (5, length)).tolist()
        found = scorer.outputs(ids)
        assert np.array_equal(found.logits, plain.run(ids))
        expected = ngrams.margins(ids, found.logits.argmax(-1))
        assert found.ngram_margin.shape == (5,)
        assert np.ptp(expected) > 0.05
        np.testing.assert_allclose(found.ngram_margin, expected, rtol=1e-4, atol=1e-5)


def test_ngrams_need_no_domain_and_few_nodes(tmp_path: Path) -> None:
    made("bert", tmp_path)
    plain = onnx.load(tmp_path / "model.onnx")
    served.write(tmp_path / "model", tmp_path / "seconds.onnx", ngrams=ngrams_of())
    seconds = onnx.load(tmp_path / "seconds.onnx")
    onnx.checker.check_model(seconds)
    assert [item.name for item in seconds.graph.output] == ["logits", "ngram_margin"]
    added = [node.name for node in seconds.graph.node][len(plain.graph.node) :]
    assert len(added) == 17
    assert all(name.startswith("ngram_margin") for name in added)
