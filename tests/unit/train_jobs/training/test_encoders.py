"""What is done to an encoder changes its work and not its answers, whatever its architecture."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AutoModelForSequenceClassification, GPT2Config

from cluster.errors import ConfigError
from tests.support.encoders import make_tiny_bert, make_tiny_distilbert, make_tiny_roberta
from train_jobs.training.candidates import Candidate, made_ready
from train_jobs.training.dropout import ByteDropout, quick_dropout, without_dropout
from train_jobs.training.encoders import (
    check_base,
    feed_forward_width,
    keep_layers,
    keep_neurons,
    layer_count,
    load_classifier,
    max_tokens,
    neuron_weights,
    new_head,
    parts_of,
    pool_mean,
    trained_classifier,
)

MAKERS = {"bert": make_tiny_bert, "roberta": make_tiny_roberta, "distilbert": make_tiny_distilbert}
WIDTH = 64  # of their feed-forward blocks
Batch = dict[str, torch.Tensor]

every_kind = pytest.mark.parametrize("kind", MAKERS)
every_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    return {kind: make(home / kind) for kind, make in MAKERS.items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def classifier(folder: Path, attention: str = "sdpa") -> Any:
    """Random weights, but large enough that attention and neurons show in the logits."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=5, attn_implementation=attention
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(8)
    return model.eval()


def batch(model: Any, *lengths: int) -> Batch:
    """Random tokens, padded to the longest."""
    dice = torch.Generator().manual_seed(2)
    tokens = torch.randint(10, 790, (len(lengths), max(lengths)), generator=dice)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": tokens.where(mask.bool(), torch.tensor(model.config.pad_token_id)),
        "attention_mask": mask,
    }


def logits(model: Any, inputs: Batch) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = model(**inputs).logits
    return made


def gradients(model: Any, inputs: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    labels = torch.arange(len(inputs["input_ids"])) % 5
    loss: Any = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
    loss.backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


# -- the mean of the positions ------------------------------------------------------------------


@every_kind
@every_attention
def test_a_message_reads_the_same_whatever_it_is_padded_to(
    bases: dict[str, Path], kind: str, attention: str
) -> None:
    """A mean over padding too would make an answer depend on its neighbours."""
    model = classifier(bases[kind], attention)
    pool_mean(model)
    lengths = (12, 7, 3)
    inputs = batch(model, *lengths)
    assert model.base_model(**inputs)[0].shape == (len(lengths), 1, 32)
    together = logits(model, inputs)
    for row, length in enumerate(lengths):
        one = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        torch.testing.assert_close(logits(model, one)[0], together[row], atol=1e-5, rtol=1e-5)


@every_kind
@every_attention
def test_every_position_counts_and_is_learned_from(
    bases: dict[str, Path], kind: str, attention: str
) -> None:
    """The head's one position is a mean: each token moves it, and every layer gets a gradient."""
    model = classifier(bases[kind], attention)
    pool_mean(model)
    inputs = batch(model, 9)
    answers = logits(model, inputs)
    for position in range(9):
        tokens = inputs["input_ids"].clone()
        tokens[0, position] = 799 - tokens[0, position]
        changed = logits(model, {**inputs, "input_ids": tokens})
        assert not torch.allclose(changed, answers, atol=1e-4)
    found = gradients(model, inputs)
    layers = {name.split("layer.")[1][0] for name in found if "layer." in name}
    assert layers == {"0", "1", "2", "3"}


@every_kind
def test_a_classifier_says_how_it_was_pooled_and_is_loaded_so(
    bases: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = load_classifier(str(bases[kind]), list("abcde")).eval()
    model.save_pretrained(tmp_path)
    again = trained_classifier(tmp_path)
    assert again.config.classifier_pooling == "mean"
    assert again.config.id2label == dict(enumerate("abcde"))
    inputs = batch(model, 12, 5)
    assert torch.equal(logits(again, inputs), logits(model, inputs))


@every_kind
def test_a_new_head_is_not_the_old_one(bases: dict[str, Path], kind: str) -> None:
    model = classifier(bases[kind])
    parts = parts_of(model, 1)
    before = [parts.pooled.weight.clone(), parts.classifier.weight.clone()]
    new_head(model)
    for old, layer in zip(before, (parts.pooled, parts.classifier), strict=True):
        assert not torch.equal(layer.weight, old)
        assert not layer.bias.any()


# -- fewer neurons and layers -------------------------------------------------------------------


@every_kind
def test_all_neurons_kept_are_the_same_model(bases: dict[str, Path], kind: str) -> None:
    model = classifier(bases[kind])
    inputs = batch(model, 12, 7, 3)
    answers = logits(model, inputs)
    keep_neurons(model, neuron_weights(model, [inputs]), WIDTH)
    assert torch.equal(logits(model, inputs), answers)


def blocks_of(model: Any) -> list[tuple[torch.nn.Linear, torch.nn.Linear]]:
    """The linear maps that widen and narrow, found by their shapes."""
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    widen = [m for m in linear if m.out_features == WIDTH]
    narrow = [m for m in linear if m.in_features == WIDTH]
    return list(zip(widen, narrow, strict=True))


@every_kind
def test_neurons_that_write_nothing_go_first(bases: dict[str, Path], kind: str) -> None:
    """Half of each block is silenced; what is kept is the other half, in its order."""
    model = classifier(bases[kind])
    inputs, blocks = batch(model, 12, 7, 3), blocks_of(model)
    assert len(blocks) == 4
    dice = torch.Generator().manual_seed(3)
    expected = []
    for widen, narrow in blocks:
        silent, loud = torch.randperm(WIDTH, generator=dice).reshape(2, -1).sort().values
        narrow.weight.data[:, silent] = 0
        expected.append((widen.weight[loud], widen.bias[loud], narrow.weight[:, loud]))
    answers = logits(model, inputs)
    keep_neurons(model, neuron_weights(model, [inputs]), WIDTH // 2)
    for (widen, narrow), (rows, bias, columns) in zip(blocks, expected, strict=True):
        assert torch.equal(widen.weight, rows)
        assert torch.equal(widen.bias, bias)
        assert torch.equal(narrow.weight, columns)
    torch.testing.assert_close(logits(model, inputs), answers, atol=1e-5, rtol=1e-5)


@every_kind
def test_neurons_that_are_never_active_go_first(bases: dict[str, Path], kind: str) -> None:
    """What a neuron would write counts only as far as messages wake it."""
    model = classifier(bases[kind])
    inputs, blocks = batch(model, 12, 7, 3), blocks_of(model)
    for widen, narrow in blocks:
        widen.weight.data[:20] = 0
        widen.bias.data[:20] = 0  # GELU(0) = 0
        narrow.weight.data[:, :20] *= 100
    weights = neuron_weights(model, [inputs])
    assert [int((weight == 0).sum()) for weight in weights] == [20] * 4
    assert all(bool((weight[20:] > 0).all()) for weight in weights)


@every_kind
def test_a_narrowed_student_is_the_same_when_loaded_again(
    bases: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model = classifier(bases[kind])
    inputs = batch(model, 12, 7, 3)
    before = logits(model, inputs)
    weights = neuron_weights(model, [inputs])
    keep_layers(model, [0, 3])
    keep_neurons(model, [weights[0], weights[3]], WIDTH // 2)
    answers = logits(model, inputs)
    assert not torch.allclose(answers, before, atol=1e-2)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, inputs), answers)
    assert layer_count(str(tmp_path)) == 2
    assert feed_forward_width(str(bases[kind])) == WIDTH
    assert feed_forward_width(str(tmp_path)) == WIDTH // 2


@every_kind
@every_attention
def test_without_dropout_training_is_deterministic(
    bases: dict[str, Path], tmp_path: Path, kind: str, attention: str
) -> None:
    model = classifier(bases[kind], attention).train()
    inputs = batch(model, 12, 7, 3)
    assert not torch.equal(logits(model, inputs), logits(model, inputs))
    without_dropout(model)
    assert torch.equal(logits(model, inputs), logits(model, inputs))
    assert torch.equal(logits(model, inputs), logits(model.eval(), inputs))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).train()
    assert torch.equal(logits(again, inputs), logits(again, inputs))


@every_kind
@every_attention
def test_dropout_of_the_attention_alone_can_be_turned_off(
    bases: dict[str, Path], kind: str, attention: str
) -> None:
    model = classifier(bases[kind], attention).train()
    hidden = {name: module.p for name, module in model.named_modules()
              if isinstance(module, nn.Dropout)}  # fmt: skip
    without_dropout(model, only_attention=True)
    off = {name for name, module in model.named_modules()
           if isinstance(module, nn.Dropout) and module.p == 0.0}  # fmt: skip
    assert off == {name for name in hidden if name.endswith(("self.dropout", "attention.dropout"))}
    assert off
    inputs = batch(model, 12, 7, 3)
    assert not torch.equal(logits(model, inputs), logits(model, inputs))
    for module in model.modules():  # what is left is not in the attention
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(logits(model, inputs), logits(model, inputs))


@every_kind
def test_quick_dropout_is_all_dropout_at_the_same_shares(
    bases: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    model = classifier(bases[kind])
    shares = {name: module.p for name, module in model.named_modules()
              if isinstance(module, nn.Dropout)}  # fmt: skip
    inputs = batch(model, 12, 7, 3)
    answers = logits(model, inputs)
    quick_dropout(model)
    quick = {name: module.p for name, module in model.named_modules()
             if isinstance(module, ByteDropout)}  # fmt: skip
    assert quick == shares
    assert torch.equal(logits(model, inputs), answers)
    model.train()
    torch.manual_seed(1)
    once = logits(model, inputs)
    assert not torch.equal(once, answers)
    torch.manual_seed(1)
    assert torch.equal(logits(model, inputs), once)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, inputs), answers)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16])
def test_byte_dropout_drops_its_share_and_keeps_the_mean(share: float, of: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.ones(301, 7, 11, dtype=of, requires_grad=True)
    made = ByteDropout(share)(values)
    assert (made.dtype, made.shape) == (of, values.shape)
    assert float((made.detach() == 0).float().mean()) == pytest.approx(share, abs=0.01)
    if share < 1:
        assert float(made.detach().float().mean()) == pytest.approx(1, abs=0.02)
    made.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, made.detach()), "what was dropped learns nothing"


# -- which bases can be used --------------------------------------------------------------------


@every_kind
def test_every_kind_of_base_is_accepted(bases: dict[str, Path], kind: str) -> None:
    source = check_base(str(bases[kind]))
    assert (layer_count(source), max_tokens(source)) == (4, 128)


@pytest.mark.parametrize("config", [GPT2Config(), AlbertConfig()], ids=["gpt2", "albert"])
def test_another_architecture_is_refused(
    bases: dict[str, Path], tmp_path: Path, config: Any
) -> None:
    shutil.copytree(bases["bert"], tmp_path, dirs_exist_ok=True)
    config.save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"is a '{config.model_type}'; bert, roberta, distilbert are supported"
    ):
        check_base(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("hidden_act", "silu", "activation 'silu' and 'absolute' positions"),
        ("position_embedding_type", "relative_key", "activation 'gelu' and 'relative_key' pos"),
    ],
)
def test_a_layer_that_the_served_graph_cannot_have_is_refused(
    bases: dict[str, Path], tmp_path: Path, field: str, value: str, found: str
) -> None:
    folder = shutil.copytree(bases["bert"], tmp_path / "base")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(ConfigError, match=found):
        check_base(str(folder))


@every_kind
def test_a_tokenizer_with_more_pieces_than_the_model_has_rows_is_refused(
    bases: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """It ended in an index error inside a worker, or in another word's embedding."""
    folder = shutil.copytree(bases[kind], tmp_path / "base")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    pieces = config["vocab_size"]
    file.write_text(json.dumps({**config, "vocab_size": pieces - 1}))
    with pytest.raises(ConfigError, match=rf"has {pieces} pieces .* embedding {pieces - 1} rows"):
        check_base(str(folder))


# -- how a candidate begins ---------------------------------------------------------------------


@pytest.mark.parametrize("head", ["probe", "new"])
def test_a_candidate_begins_with_its_own_head_and_leaves_the_words_alone(
    bases: dict[str, Path], tmp_path: Path, head: Literal["probe", "new"]
) -> None:
    start = classifier(bases["bert"])
    start.save_pretrained(tmp_path)
    candidate = Candidate(learning_rate=1e-4, head=head)
    model = made_ready(str(tmp_path), ["a", "b", "c", "d", "e"], candidate)
    same = torch.equal(model.classifier.weight, start.classifier.weight)
    assert same == (head == "probe")
    assert not model.get_input_embeddings().weight.requires_grad
    assert all(x.requires_grad for x in layer_weights(model))
    attention = model.bert.encoder.layer[0].attention.self.dropout.p
    assert (attention == 0.0) == (head == "probe"), "a plain recipe keeps all dropout"
    assert model.bert.encoder.layer[0].output.dropout.p > 0


def layer_weights(model: Any) -> list[torch.Tensor]:
    return list(model.bert.encoder.layer.parameters())
