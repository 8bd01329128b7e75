"""What a trained pair must do, whatever its accuracy: invariance, direction, minimum function.

Run by hand after `make demo`, on the release that it made (`make test-long`). Rates, not single
messages: a model with 93% accuracy is allowed its misses.
"""

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from cluster.releases import Release, list_releases, load_release
from cluster.settings import load_settings
from serve_app.guard.prepare import prepare
from serve_app.model.classifier import OnnxClassifier
from train_jobs.samples.generator import Sample, generate

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
ROWS = 400


@pytest.fixture(scope="module")
def release() -> Release:
    settings = load_settings(ROOT / ".firstline" / "demo")
    known = list_releases(settings)
    if not known:
        pytest.skip("run `make demo` first")
    return load_release(settings, known[-1])


@pytest.fixture(scope="module", params=["edge", "cloud"])
def model(request: pytest.FixtureRequest, release: Release) -> OnnxClassifier:
    return OnnxClassifier.load(getattr(release, f"{request.param}_path"))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Messages of a seed that no demo trains on, without label noise."""
    return list(islice(generate(ROWS, 987_654, label_noise_share=0.0, pii_share=0.0), ROWS))


def _answers(model: OnnxClassifier, texts: list[str]) -> list[str]:
    return [p.label for p in model.predict([prepare(text).text for text in texts])]


def _unchanged(model: OnnxClassifier, samples: list[Sample], change: Callable[[str], str]) -> float:
    before = _answers(model, [one.text for one in samples])
    after = _answers(model, [change(one.text) for one in samples])
    return sum(a == b for a, b in zip(before, after, strict=True)) / len(samples)


def test_minimum_function(model: OnnxClassifier, samples: list[Sample]) -> None:
    right = _answers(model, [one.text for one in samples])
    share = sum(a == one.label for a, one in zip(right, samples, strict=True)) / len(samples)
    assert share >= 0.80


def test_white_space_and_case_change_nothing(model: OnnxClassifier, samples: list[Sample]) -> None:
    assert _unchanged(model, samples, lambda text: f"  {text.upper()}\n\t") == 1.0


def test_a_neutral_closer_rarely_changes_the_answer(
    model: OnnxClassifier, samples: list[Sample]
) -> None:
    assert _unchanged(model, samples, lambda text: f"{text} Kind regards, Sam") >= 0.90


def test_one_typing_error_rarely_changes_the_answer(
    model: OnnxClassifier, samples: list[Sample]
) -> None:
    dice = random.Random(1)

    def typo(text: str) -> str:
        at = dice.randrange(1, len(text) - 1)
        return text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]

    assert _unchanged(model, samples, typo) >= 0.88
