"""Offline scoring without Ray: the chunks, the rows, the parts, and going on after a kill."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster.cli.score import words
from cluster.errors import ConfigError, DataError
from cluster.files import read_json
from cluster.releases import load_release
from cluster.settings import Settings, load_settings
from serve_app.cascade.local import explain_locally
from serve_app.cascade.offline import OfflineCascade
from serve_app.contracts import Prediction
from serve_app.guard.config import GuardConfig
from serve_app.scored import REFUSED, SUMMARY, part, rows
from tests.support.scoring import here
from tests.support.serving import make_pair, make_release
from tests.support.toys import message, traffic
from train_jobs.rows import text_files
from train_jobs.scoring import chunks as chunking
from train_jobs.scoring.chunks import FEWEST_ROWS, Chunk, InputRow, Plan, Reader, hashes, plan
from train_jobs.scoring.columns import Columns
from train_jobs.scoring.score import ScoreConfig, run
from train_jobs.scoring.scorer import ChunkScorer as _Scorer
from train_jobs.scoring.scorer import Order, Scored

EASY, HARD = message("negative"), message("negative", hard=True)
PINNED = message("negative", hard=True, extra="jo@example.com")
POISON = "friendly"


def write(path: Path, texts: Sequence[Any], **more: Sequence[Any]) -> Path:
    """A file of the kind that its name says; `more` are further columns."""
    columns = {"text": texts, **more}
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]  # fmt: skip  # noqa: E501
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), path)
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(columns))
                writer.writeheader()
                writer.writerows(records)
        case _:
            path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def read_all(made: Plan, columns: Columns, order: Sequence[int] | None = None) -> list[InputRow]:
    """The rows of all chunks, read in an order of chunks."""
    reader = Reader(made.root, columns)
    found = {
        index: list(reader.rows(made.chunks[index])) for index in order or range(len(made.chunks))
    }
    return [row for index in sorted(found) for row in found[index]]


def planned(path: Path, columns: Columns | None = None) -> Plan:
    return plan(path, columns or Columns(), hashes(path))


# ---- chunks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_chunks_hold_every_row_once_and_in_order_whatever_a_text_holds(
    tmp_path: Path, kind: str
) -> None:
    texts = [f'row {i}, "quoted"\nsecond line é' for i in range(3 * FEWEST_ROWS + 7)]
    made = planned(write(tmp_path / f"in{kind}", texts))
    assert [chunk.rows for chunk in made.chunks] == [FEWEST_ROWS] * 3 + [7]
    found = read_all(made, Columns())
    assert [row.text for row in found] == texts
    assert [row.number for row in found] == list(range(len(texts)))


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_a_chunk_can_be_read_by_itself_and_in_any_order(tmp_path: Path, kind: str) -> None:
    texts = [f"row {i}" for i in range(4 * FEWEST_ROWS)]
    made = planned(write(tmp_path / f"in{kind}", texts))
    found = read_all(made, Columns(), order=[3, 0, 2, 1])
    assert [row.text for row in found] == texts


def test_a_parquet_file_of_small_row_groups_is_read_across_them(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(2 * FEWEST_ROWS)]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    made = planned(path)
    assert [row.text for row in read_all(made, Columns(), order=[1, 0])] == texts
    assert [row.text for row in read_all(made, Columns())] == texts


def test_chunks_grow_with_the_input_instead_of_multiplying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "CHUNKS", 4)
    monkeypatch.setattr(chunking, "CHUNKS_PER_CPU", 1)
    monkeypatch.setattr(chunking, "FEWEST_ROWS", 8)
    texts = [f"row {i}" for i in range(1000)]
    made = planned(write(tmp_path / "in.jsonl", texts))
    assert len(made.chunks) <= 5
    assert [row.text for row in read_all(made, Columns())] == texts


def test_the_same_file_gives_the_same_chunks(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", [f"row {i}" for i in range(1000)])
    assert planned(path).chunks == planned(path).chunks


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    write(folder / "b" / "1.csv", ["third"])
    write(folder / "a.jsonl", ["first", "second"])
    (folder / "_SUCCESS").touch()
    made = planned(folder)
    assert [chunk.file for chunk in made.chunks] == ["a.jsonl", "b/1.csv"]
    assert [row.text for row in read_all(made, Columns())] == ["first", "second", "third"]


def test_a_folder_with_files_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "b.xlsx").touch()
    with pytest.raises(DataError, match=r"1 files of another kind, such as b\.xlsx"):
        hashes(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("in.csv", "a,b\n1,2\n", "no column 'text'. Found: a, b"),
        ("in.csv", "text,text\n1,2\n", "more than once"),
        ("in.csv", "text\n", "no rows"),
        ("in.csv", "", "no column"),
        ("in.jsonl", '{"body": "x"}\n', "no column 'text'. Found: body"),
        ("in.jsonl", "\n\n", "no rows"),
        ("in.parquet", "no parquet", "not a Parquet file"),
        ("in.txt", "x", "are understood"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_anything_is_scored(
    tmp_path: Path, name: str, content: str, match: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=match):
        planned(tmp_path / name)


def test_a_parquet_column_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is int64; strings were expected"):
        planned(write(tmp_path / "in.parquet", [1, 2]))


def test_broken_lines_of_jsonl_are_told_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "good"}', b"", b"{broken", b'{"text": 5}', b'{"text": null}',
        b"[1]", b'{"other": "x"}', b'{"text": "\xff"}', b'{"text": ' + b"[" * 100_000,
        b'{"text": "last"}',
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    found = read_all(planned(path), Columns())
    assert [(row.number, row.line) for row in found][:3] == [(0, 1), (1, 3), (2, 4)]
    assert [row.text for row in found if row.problem is None] == ["good", "last"]
    assert [row.problem for row in found if row.problem] == [
        "not JSON (Expecting property name enclosed in double quotes at column 2)",
        "the text is a int, not a string",
        "the text is a NoneType, not a string",
        "a JSON list instead of an object",
        "the text is missing, not a string",
        "not UTF-8",
        "not JSON that can be read",
    ]


def test_broken_records_of_csv_are_told_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b'\xef\xbb\xbftext,n\ngood,1\n\n"x"y,2\nfew\n\xff,4\n5" pipe,5\n'
        b'"two\nlines",6\n"open,7\nlost,8\n'
    )
    found = read_all(planned(path), Columns(id="n"))
    assert [(row.text, row.id) for row in found if row.problem is None] == [
        ("good", "1"), ('5" pipe', "5"), ("two\nlines", "6"),
    ]  # fmt: skip
    assert [row.problem for row in found if row.problem] == [
        "lines 4 to 4: ',' expected after '\"'",
        "1 fields, 2 expected",
        "not UTF-8",
        "lines 10 to 11: unexpected end of data",
    ]
    assert [row.number for row in found] == list(range(7))


def test_a_line_without_an_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_MAX_LINE", 1 << 10)
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "x" * 5000}) + "\n" + json.dumps({"text": "next"}) + "\n")
    huge, after = read_all(planned(path), Columns())
    assert huge.problem is not None
    assert "a line of more than" in huge.problem
    assert (after.text, after.number, after.line) == ("next", 1, 2)


def test_a_parquet_string_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    broken = pa.array([b"good", b"\xff", None]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), path)
    found = read_all(planned(path), Columns())
    assert [row.text for row in found] == ["good", "", ""]
    assert [row.problem for row in found] == [
        None, "not UTF-8", "the text is a NoneType, not a string",
    ]  # fmt: skip


@hypothesis_settings(deadline=None)
@given(
    st.lists(
        st.binary(max_size=12) | st.sampled_from([b'"', b"\n", b'","', b"\r\n", b"x,y", b'""']),
        max_size=60,
    )
)
def test_chunks_of_any_bytes_read_as_the_whole_does(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    """A boundary is where csv.reader itself ends a record, so no chunk starts inside of one."""
    path = tmp_path_factory.mktemp("fuzz") / "in.csv"
    path.write_bytes(b"text,n\n" + b"".join(pieces) + b"\nlast,1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "FEWEST_ROWS", 10_000)
        whole = read_all(planned(path), Columns(id="n"))
        patch.setattr(chunking, "FEWEST_ROWS", 1)
        assert read_all(planned(path), Columns(id="n")) == whole


# ---- the release --------------------------------------------------------------------------------


@pytest.fixture
def scored(home: Path, tmp_path: Path) -> tuple[Settings, str]:
    """A toy release whose cloud answers NaN to one word."""
    settings = load_settings()
    pair = make_pair(tmp_path / "bundles", cloud_nan_word=POISON)
    return settings, make_release(settings, pair.edge, pair.cloud).id


def config_of(release: str, data: Path, **more: Any) -> ScoreConfig:
    return ScoreConfig(data=data, out=data.parent / "out", release=release, **more)


def answers(out: Path) -> list[dict[str, Any]]:
    return list(rows(out))


def test_the_routes_and_prices_are_those_of_the_service(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    texts = [EASY, HARD, PINNED, f"{POISON} {message('positive', hard=True)}"]
    config = config_of(release, write(tmp_path / "in.jsonl", texts))
    summary = run(config, settings, execute=here)
    found = answers(config.out)
    seen = [(row["route"], row["reason"], row["label"], row["degraded"]) for row in found]
    assert seen == [
        ("edge", "trusted", "negative", False),
        ("cloud", "escalated", "negative", False),
        ("edge", "pii_pinned", "negative", False),
        ("edge", "cloud_failed", "positive", True),
    ]
    assert [row["cost_usd"] for row in found] == pytest.approx([0.001, 0.0146, 0.001, 0.001])
    assert {row["release"] for row in found} == {release}
    assert (summary.rows, summary.answered, summary.refused) == (4, 4, 0)
    assert (summary.edge_share, summary.pinned, summary.degraded) == (0.75, 1, 1)
    assert summary.cost_usd == pytest.approx(0.0176)
    assert read_json(config.out / SUMMARY) == summary.model_dump(mode="json")


def test_rows_that_cannot_be_answered_are_set_aside_with_the_reason(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    secret = "x" * 10_001
    texts = [EASY, "", " \u200b\n", secret, "y" * 10_000, 7]
    config = config_of(release, write(tmp_path / "in.jsonl", texts))
    summary = run(config, settings, execute=here)
    told = [json.loads(line) for line in (config.out / REFUSED).read_text().splitlines()]
    assert [(row["row"], row["line"], row["reason"]) for row in told] == [
        (1, 2, "no visible character"),
        (2, 3, "no visible character"),
        (3, 4, "10,001 characters, of which 10,000 are the limit"),
        (5, 6, "the text is a int, not a string"),
    ]
    assert (summary.answered, summary.refused) == (2, 4)
    assert [row["row"] for row in answers(config.out)] == list(range(6))
    assert secret not in (config.out / REFUSED).read_text()


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_ids_and_kept_columns_come_along_and_the_text_does_not(
    scored: tuple[Settings, str], tmp_path: Path, kind: str
) -> None:
    settings, release = scored
    data = write(tmp_path / f"in{kind}", [EASY, HARD], n=[7, 8], label=["a", "b"])
    config = config_of(release, data, id_column="n", keep_columns=("label",))
    run(config, settings, execute=here)
    found = answers(config.out)
    assert [(row["id"], row["input_label"]) for row in found] == [("7", "a"), ("8", "b")]
    for path in config.out.rglob("*"):
        assert path.is_dir() or EASY.encode() not in path.read_bytes(), path


class Spy:
    """A model that notes what it was asked."""

    def __init__(self, model: Any) -> None:
        self.model, self.seen = model, list[str]()

    def predict(self, texts: Sequence[str]) -> list[Prediction | None]:
        self.seen += texts
        made: list[Prediction | None] = self.model.predict(texts)
        return made


class Dead:
    """A model that fails."""

    def predict(self, texts: Sequence[str]) -> list[Prediction | None]:
        raise RuntimeError("no memory")


class Mute:
    """A model without a finite answer."""

    def predict(self, texts: Sequence[str]) -> list[Prediction | None]:
        return [None] * len(texts)


def by_pair(pair: OfflineCascade) -> Any:
    """Scores in this process, by these models."""

    def execute(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
        yield from map(_Scorer(order, pair).score, chunks)

    return execute


def pair_of(settings: Settings, release: str, **models: Any) -> OfflineCascade:
    made = OfflineCascade.of(load_release(settings, release))
    parts = {"edge": made.edge, "cloud": made.cloud, **models}
    return OfflineCascade(parts["edge"], parts["cloud"], made.policy, made.prices)


def test_what_is_pinned_is_never_shown_to_the_cloud_even_if_the_edge_is_dead(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    data = write(tmp_path / "in.jsonl", [HARD, PINNED])
    for edge in (None, Mute()):
        spy = Spy(OfflineCascade.of(load_release(settings, release)).cloud)
        models = {"cloud": spy, **({"edge": edge} if edge else {})}
        config = config_of(release, data).model_copy(update={"out": tmp_path / f"out-{edge}"})
        summary = run(config, settings, execute=by_pair(pair_of(settings, release, **models)))
        assert spy.seen == [HARD]
        assert (summary.answered, summary.refused) == ((2, 0) if edge is None else (1, 1))


def test_a_dead_cloud_degrades_and_charges_nothing_for_it(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    config = config_of(release, write(tmp_path / "in.jsonl", [EASY, HARD]))
    summary = run(config, settings, execute=by_pair(pair_of(settings, release, cloud=Dead())))
    assert [row["reason"] for row in answers(config.out)] == ["trusted", "cloud_failed"]
    assert summary.degraded == 1
    assert summary.cost_usd == pytest.approx(0.002)


# ---- going on -----------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def stops_after(count: int, scored: list[int]) -> Any:
    """Runs here, notes which chunks were scored, and dies in the middle of the next one."""

    def execute(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
        for number, one in enumerate(here(order, chunks, cpus), 1):
            scored.append(one.index)
            if number > count:
                raise Killed
            yield one

    return execute


def test_a_killed_run_goes_on_and_loses_and_doubles_nothing(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    texts, _ = traffic(4 * FEWEST_ROWS)
    texts[5] = ""
    data = write(tmp_path / "in.jsonl", texts)
    whole, config = config_of(release, data), config_of(release, data)
    whole = whole.model_copy(update={"out": tmp_path / "whole"})
    run(whole, settings, execute=here)

    first: list[int] = []
    with pytest.raises(Killed):
        run(config, settings, execute=stops_after(1, first))
    assert not (config.out / SUMMARY).exists()
    half_written = config.out / "parts" / ".half.tmp"
    half_written.touch()
    second: list[int] = []
    ticks: list[tuple[int, int]] = []
    summary = run(
        config, settings, lambda done, total, note="": ticks.append((done, total)),
        execute=stops_after(9, second),
    )  # fmt: skip
    assert (first, second) == ([0, 1], [2, 3])
    assert ticks == [(0, 512), (256, 512), (512, 512)], "of this run"
    assert (summary.rows, summary.refused, summary.scored_rows) == (1024, 1, 512)
    assert not half_written.exists()
    assert answers(config.out) == answers(whole.out)
    for chunk in range(4):
        assert part(config.out, chunk).read_bytes() == part(whole.out, chunk).read_bytes()


def test_a_finished_folder_is_only_read(scored: tuple[Settings, str], tmp_path: Path) -> None:
    settings, release = scored
    config = config_of(release, write(tmp_path / "in.jsonl", [EASY]))
    summary = run(config, settings, execute=here)
    again: list[int] = []
    assert run(config, settings, execute=stops_after(0, again)) == summary
    assert again == []


def test_another_input_or_other_columns_are_refused_by_name(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    data = write(tmp_path / "in.jsonl", [EASY], n=[1])
    config = config_of(release, data)
    run(config, settings, execute=here)
    other = config.model_copy(update={"id_column": "n"})
    with pytest.raises(ConfigError, match="id_column is 'n', and was None"):
        run(other, settings, execute=here)
    write(data, [EASY, HARD], n=[1, 2])
    with pytest.raises(ConfigError, match="the files or their content"):
        run(config, settings, execute=here)


def test_a_file_that_changes_under_the_run_gives_no_part(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    data = write(tmp_path / "in.jsonl", [EASY, HARD])

    def meddled(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
        write(data, [EASY, EASY + " and more"])
        return here(order, chunks, cpus)

    config = config_of(release, data)
    with pytest.raises(DataError, match="was changed while it was scored"):
        run(config, settings, execute=meddled)
    assert list((config.out / "parts").iterdir()) == []


def test_a_part_that_lost_rows_is_found(scored: tuple[Settings, str], tmp_path: Path) -> None:
    settings, release = scored
    config = config_of(release, write(tmp_path / "in.jsonl", [EASY]))

    def lost(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
        pq.write_table(pa.table({"row": [1]}), part(order.out, 0))
        return iter(())

    with pytest.raises(DataError, match="not a part that `firstline score` wrote"):
        run(config, settings, execute=lost)
    assert not (config.out / SUMMARY).exists()


def test_a_part_that_a_power_cut_left_short_is_scored_again(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    config = config_of(release, write(tmp_path / "in.jsonl", [EASY]))
    run(config, settings, execute=here)
    whole = part(config.out, 0).read_bytes()
    part(config.out, 0).write_bytes(whole[:50])
    (config.out / SUMMARY).unlink()
    assert run(config, settings, execute=here).scored_rows == 1
    assert part(config.out, 0).read_bytes() == whole


def test_two_runs_do_not_work_in_one_folder(scored: tuple[Settings, str], tmp_path: Path) -> None:
    settings, release = scored
    config = config_of(release, write(tmp_path / "in.jsonl", [EASY]))

    def nested(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
        with pytest.raises(ConfigError, match="Another `firstline score` works"):
            run(config, settings, execute=here)
        return here(order, chunks, cpus)

    assert run(config, settings, execute=nested).answered == 1


def test_an_output_inside_the_input_is_refused(
    scored: tuple[Settings, str], tmp_path: Path
) -> None:
    settings, release = scored
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.jsonl", [EASY])
    config = ScoreConfig(data=folder, out=folder / "out", release=release)
    with pytest.raises(ConfigError, match="Give an --out outside of it"):
        run(config, settings, execute=here)


def test_a_submitted_command_says_the_same(tmp_path: Path) -> None:
    config = ScoreConfig(
        data=tmp_path / "-x.csv", out=tmp_path / "out", release="r-1", id_column="--help",
        keep_columns=("a", "b"), cpus=2, background=True,
    )  # fmt: skip
    assert words(config) == [
        "score", f"--out={tmp_path}/out", "--release=r-1", "--text-column=text",
        "--id-column=--help", "--keep-columns=a,b", "--cpus=2", "--background",
        "--", f"{tmp_path}/-x.csv",
    ]  # fmt: skip


@pytest.mark.parametrize("row", ["my card is 4111 1111 1111 1111", "help please"])
def test_a_jobs_log_does_not_keep_the_first_row_of_a_file_without_a_header(
    scored: tuple[Settings, str], tmp_path: Path, row: str
) -> None:
    settings, release = scored
    path = tmp_path / "in.csv"
    path.write_text(f"{row}\nsecond\n")
    config = config_of(release, path, background=True)
    with pytest.raises(DataError, match="no column 'text'") as refused:
        run(config, settings, execute=here)
    assert row not in str(refused.value)
    assert "Found" not in str(refused.value)


def test_scoring_has_the_releases_guard(tmp_path: Path) -> None:
    own = make_pair(tmp_path / "own", guard=GuardConfig(harmless_domains=("acme.example",)))
    release = make_release(load_settings(), own.edge, own.cloud)
    hard = message("negative", hard=True)
    texts = [f"{hard} help@acme.example", f"{hard} jo@mail.example"]
    path = write(tmp_path / "in.jsonl", texts)
    config = config_of(release.id, path)
    run(config, load_settings(), execute=here)
    assert [row["reason"] for row in answers(config.out)] == ["escalated", "pii_pinned"]
    assert explain_locally(release, texts[0]).reason == "escalated"
    assert explain_locally(release, texts[1]).reason == "pii_pinned"
