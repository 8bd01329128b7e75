"""The card says what was measured, of whom, and nothing that a message said."""

import csv
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from cluster.bundles import TOKENIZER, Metric
from cluster.files import write_json
from cluster.settings import Settings
from tests.support.toys import LABELS, make_bundle
from train_jobs.calibrate import Calibrated
from train_jobs.card import (
    CARD,
    ClassFigures,
    Facts,
    card,
    small_classes,
    warned,
    worst_classes,
    write,
)
from train_jobs.compress import PARITY, ArtifactChoice, Compressed, Variant
from train_jobs.data import SPLITS, DataConfig, Dataset, build
from train_jobs.student.vocabulary import TrimCost

HOSTILE = (
    "a|b", "back`tick", "``two``", "new\nline", "\\", "x\\|y", "</td><script>", "![i](http://i)",
    "|---|", "**bold**", " ", "<!--",
)  # fmt: skip
RECIPE = {"dapt": {"base": "minilm", "epochs": 2.0}, "distill": {"layers": 3}, "variant": "int8"}
COST = TrimCost(
    messages=100, tokens_per_message_before=11.5, tokens_per_message_after=12.25,
    retokenised_share=0.2, unknown_share_before=0.0, unknown_share_after=0.0012,
    all_unknown_before=0, all_unknown_after=1,
)  # fmt: skip


def variant(name: str, **over: object) -> Variant:
    figures = dict.fromkeys(Variant.model_fields, 0) | {"needs": (), "rows": 200}
    return Variant.model_validate({**figures, "name": name, "split": "calibration", **over})


def calibrated(temperature: float, right: int, of: int) -> Calibrated:
    def metric(value: float) -> Metric:
        return Metric(value=value, split="tune", rows=of)

    return Calibrated(
        temperature, metric(0.08), metric(0.02), metric(right / of), Path("reliability.png")
    )


def facts(
    labels: Sequence[str] = LABELS,
    truth: Sequence[int] = (0,) * 30 + (1,) * 20 + (2,) * 3,
    answers: Sequence[int] = (0,) * 30 + (1,) * 18 + (2,) * 2 + (0,) * 3,
) -> Facts:
    variants = (
        variant("fp32", size_bytes=90_000_000, accuracy=0.95),
        variant("int8", needs=("vnni",), size_bytes=18_300_000, accuracy=0.94,
                label_flips_share=0.015, batched_label_flips_share=0.03),
        variant("int7", size_bytes=18_300_000, accuracy=0.93, company_changes=7),
    )  # fmt: skip
    right = sum(a == b for a, b in zip(truth, answers, strict=True))
    return Facts(
        role="edge",
        compressed=Compressed(Path("nowhere"), ArtifactChoice("int8", "int7"), variants, 128),
        calibrated=calibrated(1.5, right, len(truth)),
        anywhere=calibrated(1.7, max(0, right - 1), len(truth)),
        dataset=Dataset(
            path=Path("nowhere"),
            labels=tuple(labels),
            fingerprint="f" * 64,
            rows={name: 1000 + i for i, name in enumerate(SPLITS)},
            notes={"rows_read": 6000, "duplicates_dropped": 17},
        ),
        recipe=RECIPE,
        vocabulary=COST,
        truth=truth,
        answers=answers,
        made_on=date(2026, 1, 2),
        versions={"onnxruntime": "1.31.1"},
        cpu={"vnni"},
    )


def tables(text: str) -> list[list[list[str]]]:
    """Tables -> rows -> cells, by GitHub's rule: a pipe parts cells unless a backslash precedes."""
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    return [
        [
            [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.rstrip().split("\n")
        ]
        for block in blocks
    ]


def under(heading: str, text: str) -> str:
    """What stands below a heading, up to the next of its rank."""
    return re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


# ---- the worst classes ---------------------------------------------------------------------------


def test_the_worst_classes_of_a_case_counted_by_hand() -> None:
    """a: 1 of 4 found; b: 2 of 4; c: 3 of 3; d has no row but is named once."""
    truth = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    answers = [0, 1, 1, 2, 1, 1, 2, 3, 2, 2, 2]
    assert worst_classes(truth, answers, "abcd") == [
        ClassFigures("a", rows=4, right=1, answers=1, taken_for=(("b", 2), ("c", 1))),
        ClassFigures("b", rows=4, right=2, answers=4, taken_for=(("c", 1), ("d", 1))),
    ]


def test_of_two_equally_bad_classes_the_larger_comes_first_and_only_so_many_are_given() -> None:
    truth = [0] * 2 + [1] * 4 + [2] * 4
    answers = [1, 0, 0, 0, 1, 1, 2, 0, 0, 0]
    assert [item.label for item in worst_classes(truth, answers, "abc")] == ["c", "b", "a"]
    assert [item.label for item in worst_classes(truth, answers, "abc", most=1)] == ["c"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60))
def test_the_worst_classes_hold_no_better_one_than_those_left_out(
    rows: list[tuple[int, int]],
) -> None:
    truth, answers = [row[0] for row in rows], [row[1] for row in rows]
    recall = {
        "abcdef"[i]: sum(got == was == i for was, got in rows) / truth.count(i) for i in set(truth)
    }
    found = worst_classes(truth, answers, "abcdef", most=3)
    given = [recall[item.label] for item in found]
    left = [share for label, share in recall.items() if label not in {i.label for i in found}]
    assert given == [item.right / item.rows for item in found] == sorted(given)
    assert all(share < 1 for share in given)
    assert len(found) == min(3, sum(share < 1 for share in recall.values()))
    assert max(given, default=0) <= min(left, default=1)
    for item in found:
        assert item.answers == answers.count("abcdef".index(item.label))
        assert 0 < sum(n for _, n in item.taken_for) <= item.rows - item.right


def test_classes_without_and_with_too_few_rows_are_small() -> None:
    assert small_classes([0] * 20 + [2] * 19, "abc") == [("b", 0), ("c", 19)]


# ---- what the card says --------------------------------------------------------------------------


def test_figures_name_their_rows_and_show_how_sure_they_are() -> None:
    """The Wilson interval of 48 of 53, by the textbook's formula: 79.7% to 95.9%."""
    _, best, second = tables(under("Figures on `tune`", card(facts())))[0][1:]
    assert best == [
        "`model.onnx`", "`int8`", "90.6% of 53 (79.7% to 95.9%)", "0.0800", "0.0200", "1.5000",
    ]  # fmt: skip
    assert second[:2] == ["`model-any.onnx`", "`int7`"]
    assert second[2].startswith("88.7% of 53")
    assert "53 rows of `tune`" in under("Figures on `tune`", card(facts()))


def test_every_variant_is_in_the_parity_table_and_the_chosen_are_marked() -> None:
    header, _, *rows = tables(under("Parity of variants", card(facts())))[0]
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["variant"] for row in found] == ["`fp32`", "`int8`", "`int7`"]
    assert [row["chosen"] for row in found] == ["", "**`model.onnx`**", "**`model-any.onnx`**"]
    assert found[1]["CPU must have"] == "vnni"
    assert found[1]["MB"] == "18.30"
    assert found[1]["labels changed"] == "3 (1.50%)"
    assert found[1]["batched: labels"] == "6 (3.00%)"
    assert found[2]["company"] == "7"
    assert "200 rows of `calibration`" in under("Parity of variants", card(facts()))


def test_a_cloud_bundle_has_one_variant_and_its_own_vocabulary() -> None:
    edge = facts()
    alone = replace(
        edge,
        role="cloud",
        anywhere=None,
        vocabulary=None,
        compressed=replace(
            edge.compressed,
            choice=ArtifactChoice("fp32", None),
            variants=edge.compressed.variants[:1],
        ),
    )
    text = card(alone)
    assert len(tables(under("Parity of variants", text))[0]) == 3
    assert len(tables(under("Figures on `tune`", text))[0]) == 3
    assert "vocabulary" not in text
    assert "distil" not in under("Data", text)
    assert "distil" in under("Data", card(edge))


def test_what_cutting_the_vocabulary_cost_is_told() -> None:
    _, cost = tables(under("Parity of variants", card(facts())))
    assert cost[2:] == [
        ["tokens per message", "11.50", "12.25"],
        ["share of tokens that are unknown", "0.000%", "0.120%"],
        ["messages of unknown tokens only", "0", "1"],
    ]


def test_the_hardest_classes_are_counted_and_the_small_ones_named() -> None:
    text = card(facts())
    _, _, worst, second = tables(under("The hardest classes", text))[0]
    assert worst[:2] == ["`positive`", "3"]
    assert worst[2].startswith("0.0% of 3 (")
    assert worst[3].startswith("0.0% of 2 (")
    assert worst[4] == "`negative` (3)"
    assert second[0] == "`neutral`"
    assert "1 of 3: `positive` (3)." in under("Limits", text)


def test_a_class_that_was_never_named_has_no_precision() -> None:
    rows = tables(under("The hardest classes", card(facts(truth=(0, 1), answers=(0, 0)))))[0]
    assert rows[2][0] == "`neutral`"
    assert rows[2][3] == "no rows"


def test_a_model_without_mistakes_has_no_hardest_class() -> None:
    text = card(facts(truth=(0, 1, 2) * 20, answers=(0, 1, 2) * 20))
    assert tables(under("The hardest classes", text)) == []
    assert "0 of 3: none." in under("Limits", text)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_says_how_many_rows_it_has_and_what_it_was_for(split: str) -> None:
    rows = {row[0]: row[1:] for row in tables(under("Data", card(facts())))[0]}
    count, use = rows[f"`{split}`"]
    assert count == f"{1000 + SPLITS.index(split):,}"
    assert ("not seen" in use) == (split in {"certify", "test"})


def test_of_many_labels_the_first_are_named_and_the_rest_counted() -> None:
    many = [f"label-{i}" for i in range(77)]
    (first, *_) = tables(card(facts(labels=many)))
    names = next(row[1] for row in first if row[0] == "labels")
    assert names.startswith("77: `label-0`, ")
    assert names.endswith("`label-19` and 57 more")


def test_the_same_facts_give_the_same_card_and_the_date_is_one_of_them() -> None:
    assert card(facts()) == card(facts())
    later = card(replace(facts(), made_on=date(2027, 3, 4)))
    assert later == card(facts()).replace("2026-01-02", "2027-03-04") != card(facts())


# ---- what it must not do -------------------------------------------------------------------------


def _is_well_formed(text: str) -> None:
    for rows in tables(text):
        assert len(rows) > 2
        assert {len(row) for row in rows} == {len(rows[0])}
        assert set(rows[1]) == {"---"}


def test_tables_are_well_formed() -> None:
    _is_well_formed(card(facts()))
    assert len(tables(card(facts()))) == 10


def _spans(text: str) -> list[str]:
    """Inline code by CommonMark's rule: from a run of backticks to the next run as long."""
    return re.findall(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", text)


def test_a_hostile_label_stays_in_its_cell_and_is_read_as_it_is() -> None:
    """All it says stands in inline code, where nothing is Markdown or HTML."""
    classes = len(HOSTILE)
    given = facts(HOSTILE, truth=range(classes), answers=[*range(1, classes), 0])
    text = card(given)
    _is_well_formed(text)
    table = tables(under("The hardest classes", text))[0][2:]
    shown = [_spans(row[0].replace("\\|", "|")) for row in table]
    assert [" ".join(span[1].split()) for (span,) in shown] == [
        " ".join(label.split()) for label in HOSTILE[:10]
    ]
    plain = re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", text)
    assert not re.search(r"script|http|<|\bbold\b|`", plain)
    assert plain.count("![") == 2


@examples(deadline=None)
@given(st.lists(st.text(), min_size=3, max_size=3, unique=True))
def test_no_label_breaks_a_table(labels: list[str]) -> None:
    _is_well_formed(card(facts(labels)))
    assert len(tables(card(facts(labels)))) == 10
    assert len(card(facts(labels)).splitlines()) == len(card(facts()).splitlines())


@pytest.fixture
def dataset(tmp_path: Path, settings: Settings) -> Dataset:
    """Messages that each hold a word of their own, which must not be seen again."""
    words = ("awful", "where", "great")
    with (tmp_path / "messages.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        for i in range(600):
            rows.writerow((f"{words[i % 3]} secret{i:04d} <card> order", LABELS[i % 3]))
    return build(DataConfig(data=tmp_path / "messages.csv"), settings)


@pytest.mark.parametrize("vocabulary", [COST, None])
def test_the_written_card_is_of_the_model_and_holds_no_message(
    tmp_path: Path, dataset: Dataset, vocabulary: TrimCost | None
) -> None:
    """To the toy cloud "order" is as neutral as "great" is positive, and the first label wins."""
    make_bundle(tmp_path, "cloud")
    folder = tmp_path / "cloud-onnx"
    folder.mkdir()
    shutil.copyfile(tmp_path / "cloud.onnx", folder / "fp32.onnx")
    shutil.copyfile(tmp_path / f"cloud-{TOKENIZER}", folder / TOKENIZER)
    write_json(folder / PARITY, {"vocabulary": asdict(vocabulary)} if vocabulary else {})
    made = Compressed(folder, ArtifactChoice("fp32", None), (variant("fp32"),), 64)
    rows = dataset.rows["tune"]
    path = write("cloud", made, calibrated(1.0, rows, rows), None, dataset, RECIPE)
    text = path.read_text()
    assert path == folder / CARD
    _is_well_formed(text)
    assert ("cut to the domain" in text) == (vocabulary is not None)
    positive = [row.label for row in dataset.read("tune")].count("positive")
    ((_, _, hardest),) = tables(under("The hardest classes", text))
    assert hardest[:2] == ["`positive`", str(positive)]
    assert hardest[4] == f"`neutral` ({positive})"
    assert f"{rows} rows of `tune`" in under("The hardest classes", text)
    for split in SPLITS:
        for row in dataset.read(split):
            assert "secret" in row.message.text
            assert row.message.text not in text
    assert "secret" not in text


def test_warnings_come_before_everything_else_and_are_only_text() -> None:
    """They name classes, and a class may be named anything."""
    text = card(facts())
    made = warned(text, [f"It never finds {HOSTILE[6]!r}.", "Small."])
    said = under("Warnings", made)
    assert "- `It never finds '</td><script>'.`\n- `Small.`" in said
    assert re.findall(r"^## (.*)$", made, re.MULTILINE)[0] == "Warnings"
    assert made.replace(f"## Warnings\n{said}", "") == text
