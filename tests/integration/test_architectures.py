"""The whole training path with the other architectures: a random encoder of each, real Ray."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import ray
from tokenizers import Tokenizer
from transformers import AutoConfig

from cluster.connect import connected
from cluster.files import read_json
from cluster.ray_private import auth
from cluster.settings import Settings, load_settings
from cluster.tracking import client
from serve_app.model.classifier import OnnxClassifier
from tests.support.encoders import make_tiny_distilbert, make_tiny_roberta
from train_jobs.gate import GateLimits
from train_jobs.pipeline import PipelineResult, configure, run
from train_jobs.samples.generator import write_csv
from train_jobs.training.on_ray import Compute

# Twice five Ray stages stand behind the first test.
pytestmark = pytest.mark.timeout(600)

MAKERS = {"distilbert": make_tiny_distilbert, "roberta": make_tiny_roberta}
BUDGET = 600  # pieces of 800
# A random encoder of this size learns less than words alone tell.
WIDE = GateLimits(
    min_accuracy_kept=0.3, max_calibration_error=0.9, max_size_ratio=2.0, max_latency_ratio=10.0,
    min_gain_over_words=-1, min_gain_over_largest_class=-1, max_edge_gain=1,
    max_classes_never_found=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    found = load_settings(tmp_path_factory.mktemp("architectures") / "home")
    with connected(found, num_cpus=2):
        yield found
    assert not ray.is_initialized()
    assert auth.MODE not in os.environ, "a service that is started now would share its token"


@pytest.fixture(scope="module")
def every(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, PipelineResult]:
    """Side by side: most of a stage on so few rows is starting its workers."""
    folder = tmp_path_factory.mktemp("input")
    write_csv(folder / "messages.csv", 800, seed=1)
    client(settings)  # one of them has to make MLflow's tables

    def trained(kind: str) -> PipelineResult:
        base = MAKERS[kind](folder / kind)
        given = configure(data=folder / "messages.csv", base=str(base), epochs=2, dapt_epochs=1)
        student = replace(given.distill, layers=2, vocabulary=BUDGET, copies=1, learning_rate=2e-3)
        config = replace(
            given,
            compute=Compute(cpus_per_worker=1),
            finetune=replace(given.finetune, learning_rate=2e-3),
            distill=student,
            limits=WIDE,
            compress=replace(given.compress, min_agreement=0.7),  # it is unsure of its answers
        )
        return run(config, settings)

    with ThreadPoolExecutor() as pool:
        return dict(zip(MAKERS, pool.map(trained, MAKERS), strict=True))


@pytest.fixture(params=sorted(MAKERS))
def made(
    request: pytest.FixtureRequest, every: dict[str, PipelineResult]
) -> tuple[str, PipelineResult]:
    return request.param, every[request.param]


def test_both_sides_are_of_the_architecture(made: tuple[str, PipelineResult]) -> None:
    kind, result = made
    for role in ("cloud", "edge"):
        config = AutoConfig.from_pretrained(result.edge.path.parent / role)
        assert config.model_type == kind
        assert config.num_hidden_layers == (4 if role == "cloud" else 2)


def test_the_bundles_answer_and_mind_no_company(made: tuple[str, PipelineResult]) -> None:
    _, result = made
    texts = result.dataset.texts("tune")
    for bundle in (result.edge, result.cloud):
        model = OnnxClassifier.load(bundle.path, bundle.sha256)
        model.check_golden(bundle.golden())
        assert model.predict(texts) == [model.predict([text])[0] for text in texts]
    assert result.edge.size_bytes < result.cloud.size_bytes


def test_the_students_vocabulary_is_cut_and_still_spells_anything(
    made: tuple[str, PipelineResult],
) -> None:
    _, result = made
    small = Tokenizer.from_file(str(result.edge.tokenizer_path))
    large = Tokenizer.from_file(str(result.cloud.tokenizer_path))
    assert small.get_vocab_size() <= BUDGET < large.get_vocab_size()
    unknown = {small.token_to_id(piece) for piece in ("[UNK]", "<unk>")}
    for text in ("Wo ist meine Karte?", "😀😀", "ÅÄÖ", "كارت", "x" * 300):
        ids = small.encode(text, add_special_tokens=False).ids
        assert ids
        assert not set(ids) <= unknown


def test_adapting_helped_and_the_report_tells_what_trimming_cost(
    made: tuple[str, PipelineResult],
) -> None:
    _, result = made
    figures = result.figures["dapt"]
    assert 1 < figures["perplexity_after"] < figures["perplexity_before"]
    cost = read_json(result.edge.path / "parity.json")["vocabulary"]
    assert cost["messages"] == result.dataset.rows["calibration"]
    assert 0 <= cost["retokenised_share"] < 1
    assert cost["tokens_per_message_after"] >= cost["tokens_per_message_before"]
