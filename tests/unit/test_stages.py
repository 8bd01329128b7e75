"""The pure parts of the training stages, and what is refused before any of them runs."""

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.errors import BundleError, ConfigError, DataError
from cluster.files import sha256_json
from serve_app.classifier import OnnxScorer
from tests.toys import LABELS, make_bundle, message
from train_jobs.compress import CompressConfig, Variant, choose, measure
from train_jobs.distill import evenly_spaced
from train_jobs.encoders import MINILM, check_base, layer_count, max_tokens, resolve_base
from train_jobs.pipeline import configure, parse
from train_jobs.training import Fit, cpus_per_worker, holdout, in_turn


def variant(name: str, **over: float) -> Variant:
    figures = dict.fromkeys(Variant.model_fields, 0)
    return Variant.model_validate({**figures, "name": name, "split": "calibration", **over})


def test_the_smallest_variant_that_agrees_is_chosen() -> None:
    found = [
        variant("fp32", size_bytes=90),
        variant("int8-matmul", size_bytes=40, label_flips_share=0.01),
        variant("int8", size_bytes=20, label_flips_share=0.03),
    ]
    assert choose(found, CompressConfig(min_agreement=0.98)) == "int8-matmul"
    assert choose(found, CompressConfig(min_agreement=0.97)) == "int8"
    assert choose(found, CompressConfig(min_agreement=1.0)) == "fp32"


def test_a_variant_that_depends_on_its_neighbours_is_never_chosen() -> None:
    found = [variant("fp32", size_bytes=90), variant("int8", size_bytes=20, company_changes=1)]
    assert choose(found, CompressConfig()) == "fp32"
    with pytest.raises(BundleError, match="fp32 changes 2 of 10"):
        choose([variant("fp32", company_changes=2, rows=10)], CompressConfig())


@given(st.integers(1, 24), st.integers(1, 24))
def test_a_students_layers_are_distinct_and_span_the_teacher(layers: int, of: int) -> None:
    if layers > of:
        with pytest.raises(ConfigError, match=f"{layers} layers .* teacher of {of}"):
            evenly_spaced(layers, of)
        return
    found = evenly_spaced(layers, of)
    assert len(set(found)) == layers
    assert found == sorted(found)
    assert found[0] == 0
    assert layers == 1 or found[-1] == of - 1


@pytest.mark.parametrize(
    ("workers", "nodes", "share"),
    [(1, [2], 2), (2, [2], 1), (1, [8, 8], 8), (3, [8, 8], 4), (4, [8, 2], 2), (2, [16, 1], 8)],
)
def test_workers_get_what_one_node_can_give(workers: int, nodes: list[int], share: int) -> None:
    """CPUs summed over nodes asked for a worker that no node could hold, and waited for ever."""
    assert cpus_per_worker(workers, nodes) == share


def test_more_workers_than_cpus_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"64 workers .* 2 CPUs"):
        cpus_per_worker(64, [2])


class _Batching:
    """What a scorer must not be: a message's logits depend on who shares its run."""

    def __init__(self, real: OnnxScorer) -> None:
        self._real = real
        self.tokenizer = real.tokenizer
        self.run = real.run

    def logits(self, texts: list[str]) -> NDArray[np.float32]:
        return self._real.logits(texts) + np.float32(len(texts) - 1)


def test_parity_notices_a_model_that_minds_its_company(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "edge")
    real = OnnxScorer.open(bundle.model_path, bundle.tokenizer_path, 64)
    texts = [message(label) for label in LABELS] * 2
    counted = {
        name: measure(
            name, bundle.model_path, scorer, real.logits(texts), texts, [0, 1, 2] * 2,
            CompressConfig(),
        ).company_changes
        for name, scorer in (("real", real), ("batching", cast("OnnxScorer", _Batching(real))))
    }  # fmt: skip
    assert counted == {"real": 0, "batching": len(texts)}


def test_a_holdout_is_a_matter_of_the_row_alone() -> None:
    """The same rows in every stage, and whoever is added: what was held out stays held out."""
    keys = [sha256_json(number) for number in range(2000)]
    fitted, validated = holdout(keys)
    assert sorted(fitted + validated) == list(range(2000))
    assert len(validated) / 2000 == pytest.approx(0.1, abs=0.02)
    assert holdout(keys[:500])[1] == [i for i in validated if i < 500]


def test_too_few_rows_to_hold_some_out() -> None:
    with pytest.raises(DataError, match="2 rows are too few"):
        holdout(["f" * 64, "e" * 64])


def test_fits_in_turn_count_on() -> None:
    one, two = in_turn(
        100, 2, Fit(epochs=1, learning_rate=1, batch_size=32), Fit(epochs=3, learning_rate=1)
    )
    assert (one.first_step, two.first_step) == (0, 2)
    assert one.total_steps == two.total_steps == 2 + 6


# -- refused before any work --------------------------------------------------------------------


def test_the_default_base_needs_no_hub() -> None:
    source = check_base(MINILM)
    assert Path(source).is_dir()
    assert (layer_count(source), max_tokens(source)) == (6, 256)


def test_a_folder_is_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_base("mine") == str(tmp_path / "mine")
    assert resolve_base("someone/model") == "someone/model"


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read.*or 'minilm'"):
        check_base(str(tmp_path))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    source = Path(resolve_base(MINILM))
    for file in source.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match=r"is a 'gpt2'; bert, roberta, distilbert are supported"):
        check_base(str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0.0), ("epochs", float("nan")), ("epochs", float("inf")), ("dapt_epochs", -1.0)],
)
def test_epochs_that_are_none_are_refused(option: str, value: float) -> None:
    """They ended in an AssertionError inside a worker, minutes later."""
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')} is {value}"):
        configure(data=Path("m.csv"), **{option: value})  # type: ignore[arg-type]


def test_no_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match="--num-workers is 0"):
        configure(data=Path("m.csv"), num_workers=0)


def test_words_and_options_make_the_same_configuration() -> None:
    words = "--data m.csv --test t.csv --unlabelled a.csv b.csv --epochs 3 --student-layers 2"
    assert parse(words.split()) == configure(
        data=Path("m.csv"), test=Path("t.csv"), unlabelled=[Path("a.csv"), Path("b.csv")],
        epochs=3.0, student_layers=2,
    )  # fmt: skip
    assert parse(["--data", "m.csv"]).distill.layers == 3
