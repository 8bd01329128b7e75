"""POST /v1/jobs without Ray: the runner is real and runs real processes, of stub commands."""

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from cluster.errors import ServiceError
from cluster.processes import started
from cluster.ray_private import haproxy
from cluster.settings import load_settings
from serve_app.access.admission import Admission
from serve_app.access.keys import Keys, KeyStore, Scope, new_key
from serve_app.access.rate_limits import RateConfig
from serve_app.contracts import Caller
from serve_app.http.idempotency import Idempotency
from serve_app.http.routes import create_api
from serve_app.jobs.routes import MAX_QUEUED, MAX_QUEUED_PER_KEY, Jobs, add_jobs
from serve_app.jobs.runner import Command, JobsConfig, Runner, score_command
from serve_app.jobs.store import JOBS, TEXTS, Job, JobState, JobStore
from tests.support.http_service import StubService
from tests.support.serving import make_pair, make_release
from tests.support.toys import message

pytestmark = pytest.mark.anyio
SECRET = "my card is broken and late"
TEXT_JOB = {"texts": [SECRET]}
# Scores in its own process instead of on Ray.
HERE = """
import sys
from pathlib import Path
from cluster.settings import load_settings
from tests.support.scoring import here
from train_jobs.scoring.score import ScoreConfig, run
data, out, release = sys.argv[1:]
config = ScoreConfig(data=Path(data), out=Path(out), release=release)
run(config, load_settings(), execute=here)
"""


class ByHeader(Admission):
    """The key is what a header says; none of them lacks a scope."""

    def __init__(self) -> None:
        super().__init__()
        self.scopes = list[Scope]()

    def needs(self, scope: Scope) -> Any:
        self.scopes.append(scope)

        async def caller(request: Request) -> Caller:
            return Caller(key=request.headers.get("x-key", "anonymous"))

        return caller


class Direct:
    """A RunnerClient to a runner in this process."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    async def poke(self) -> None:
        self.runner.poke()

    async def cleared(self, job_id: str) -> bool:
        return await asyncio.to_thread(self.runner.cleared, job_id)


class Gone:
    """A RunnerClient to nobody."""

    async def poke(self) -> None:
        raise ServiceError("gone")

    async def cleared(self, job_id: str) -> bool:
        raise ServiceError("gone")


def python(script: str) -> Command:
    """A command that runs a script, and tells it data, out and release."""

    def words(job: Job, data: Path, out: Path) -> Sequence[str]:
        return [sys.executable, "-c", script, str(data), str(out), job.release]

    return words


SLOW = python("import time; time.sleep(60)")
Start = Callable[..., httpx.AsyncClient]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Starts a service's jobs; called again, it is the next service on the same home."""
    home.mkdir()
    runners = list[Runner]()

    def begin(command: Command = SLOW, *, link: Any = None, **config: Any) -> httpx.AsyncClient:
        options = JobsConfig(**config)
        if link is None:
            runner = Runner(home, options, command, os.environ)
            runner.start()
            runners.append(runner)
            link = Direct(runner)
        api = FastAPI()
        jobs = Jobs(home, lambda: "r-1", link)
        add_jobs(api, jobs, ByHeader())
        return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test")

    yield begin
    for runner in runners:
        runner.stop()


async def until(client: httpx.AsyncClient, job_id: str, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}")).json()
        if found["state"] in states:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"still {found['state']}, not {states}")


async def made(client: httpx.AsyncClient, body: Any = None, key: str = "anonymous") -> str:
    response = await client.post(haproxy.JOBS, json=body or TEXT_JOB, headers={"x-key": key})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def holders(home: Path, text: str) -> list[Path]:
    """Files of the jobs that hold a text."""
    files = [path for path in (home / JOBS).rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def pid_of(home: Path, job_id: str) -> tuple[int, int | None]:
    job = JobStore(home).find(job_id)
    assert job is not None
    assert job.pid is not None
    return job.pid, job.pid_started


async def test_texts_come_back_as_answers_in_their_order(
    start: Start, home: Path, tmp_path: Path
) -> None:
    pair = make_pair(tmp_path / "bundles")
    release = make_release(load_settings(), pair.edge, pair.cloud).id
    texts = [message("negative"), " ", message("positive", hard=True)]

    def scored(job: Job, data: Path, out: Path) -> Sequence[str]:
        return [sys.executable, "-c", HERE, str(data), str(out), release]

    async with start(scored) as client:
        job_id = await made(client, {"texts": texts})
        done = await until(client, job_id, "done", "failed")
        assert (done["state"], done["rows_done"], done["rows_total"]) == ("done", 3, 3), done
        assert (done["summary"]["answered"], done["summary"]["refused"]) == (2, 1)
        response = await client.get(done["results"])
        assert response.headers["content-type"] == "application/x-ndjson"
        found = [json.loads(line) for line in response.text.splitlines()]
        assert [row.get("label") for row in found] == ["negative", None, "positive"]
        assert found[1]["reason"] == "no visible character"
        assert not holders(home, texts[0])
        assert (await client.delete(f"/v1/jobs/{job_id}")).status_code == 204
        assert (await client.get(f"/v1/jobs/{job_id}")).status_code == 404
    assert list((home / JOBS).iterdir()) == []


async def test_texts_lie_on_disk_for_their_owner_only_and_until_the_job_ends(
    start: Start, home: Path
) -> None:
    async with start(python("import sys, time; time.sleep(1)")) as client:
        job_id = await made(client)
        path = home / JOBS / job_id / TEXTS
        assert SECRET in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE((path.parent / "job.json").stat().st_mode) == 0o600
        await until(client, job_id, "running")
        deadline = time.monotonic() + 10
        while path.exists() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
    assert not path.exists()
    assert not holders(home, SECRET)


async def test_another_key_does_not_find_the_job(start: Start) -> None:
    async with start() as client:
        job_id = await made(client, key="one")
        for method, path in (
            ("GET", ""), ("GET", "/results"), ("DELETE", ""),
        ):  # fmt: skip
            theirs = await client.request(
                method, f"/v1/jobs/{job_id}{path}", headers={"x-key": "two"}
            )
            nowhere = await client.request(method, f"/v1/jobs/{'0' * 32}{path}")
            assert (theirs.status_code, theirs.json()) == (404, nowhere.json())
        own = await client.get(f"/v1/jobs/{job_id}", headers={"x-key": "one"})
        assert own.status_code == 200


async def test_delete_stops_the_process_and_leaves_nothing(start: Start, home: Path) -> None:
    async with start() as client:
        running, waiting = await made(client), await made(client)
        await until(client, running, "running")
        pid, since = pid_of(home, running)
        assert (await client.delete(f"/v1/jobs/{waiting}")).status_code == 204
        assert started(pid) == since, "the one that runs is left alone"
        assert (await client.delete(f"/v1/jobs/{running}")).status_code == 204
        assert started(pid) is None
        assert list((home / JOBS).iterdir()) == []


async def test_jobs_run_one_at_a_time_and_in_their_order(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"""
import sys, time
for word in ("in", "out"):
    open({str(log)!r}, "a").write(word + " " + sys.argv[2].split("/")[-2] + "\\n"); time.sleep(0.1)
"""
    async with start(python(script)) as client:
        ids = [await made(client) for _ in range(3)]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (
            not log.exists() or len(log.read_text().splitlines()) < 6
        ):
            await asyncio.sleep(0.05)
    expected = [f"{word} {job_id}" for job_id in ids for word in ("in", "out")]
    assert log.read_text().splitlines() == expected


async def test_the_queue_is_bounded_for_all_and_for_each_key(start: Start) -> None:
    async with start() as client:
        for _ in range(MAX_QUEUED_PER_KEY):
            await made(client, key="one")
        response = await client.post("/v1/jobs", json=TEXT_JOB, headers={"x-key": "one"})
        assert (response.status_code, response.headers["retry-after"]) == (429, "30")
        for at in range(MAX_QUEUED - MAX_QUEUED_PER_KEY):
            await made(client, key=f"other-{at % 4}")
        response = await client.post("/v1/jobs", json=TEXT_JOB, headers={"x-key": "three"})
        assert response.status_code == 429
        assert SECRET not in response.text


async def test_the_next_service_goes_on_and_ends_what_the_last_one_left_running(
    start: Start, home: Path
) -> None:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                            start_new_session=True)  # fmt: skip
    job = Job(
        id="a" * 32, owner="anonymous", release="r-1", rows=1, created_s=1.0, attempts=1,
        state=JobState.RUNNING, pid=left.pid, pid_started=started(left.pid),
    )  # fmt: skip
    JobStore(home).add(job, [SECRET])
    async with start(python("import time; time.sleep(0.5)")) as client:
        assert left.wait(10) < 0
        await until(client, job.id, "running")
        found = None
        while found is None or not found.state.is_over:
            found = JobStore(home).find(job.id)
            await asyncio.sleep(0.05)
    assert (found.state, found.attempts) == (JobState.DONE, 2)


async def test_a_stopped_service_ends_its_job_and_the_next_goes_on(
    start: Start, home: Path
) -> None:
    runner = Runner(home, JobsConfig(), SLOW, os.environ)
    runner.start()
    async with start(link=Direct(runner)) as client:
        job_id = await made(client)
        await until(client, job_id, "running")
        pid, since = pid_of(home, job_id)
        runner.stop()
    assert started(pid) != since
    assert (home / JOBS / job_id / TEXTS).exists(), "the next one needs them"
    job = JobStore(home).find(job_id)
    assert job is not None
    assert job.state is JobState.RUNNING


async def test_a_failed_command_tells_its_last_word_without_paths(start: Start, home: Path) -> None:
    script = """
import sys
print("Traceback, then", file=sys.stderr)
print(f"firstline: {sys.argv[1]} has no column 'text'.", file=sys.stderr)
sys.exit(2)
"""
    async with start(python(script)) as client:
        failed = await until(client, await made(client), "failed")
        assert failed["error"] == "job/texts.jsonl has no column 'text'."
        response = await client.get(f"/v1/jobs/{failed['id']}/results")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "job_not_done")
    async with start(python("raise ValueError('a secret')")) as client:
        failed = await until(client, await made(client), "failed")
        assert "secret" not in failed["error"]
        assert str(home) not in json.dumps(failed)


async def test_a_command_that_cannot_be_started_does_not_block_the_others(start: Start) -> None:
    def broken(job: Job, data: Path, out: Path) -> Sequence[str]:
        return ["/nowhere/command"] if (job.rows == 2) else [sys.executable, "-c", "exit(1)"]

    async with start(broken) as client:
        bad = await made(client, {"texts": ["a", "b"]})
        for _ in range(8):  # every look at it is another try
            await client.get(f"/v1/jobs/{bad}")
            await asyncio.sleep(0.05)
        assert (await until(client, bad, "failed"))["error"] == "It was interrupted 5 times."
        await until(client, await made(client), "failed")


async def test_results_go_after_their_time(start: Start, home: Path) -> None:
    async with start(python("exit(1)"), retention_s=0.1) as client:
        first = await made(client)
        await until(client, first, "failed")
        await asyncio.sleep(0.2)
        await made(client)
        deadline = time.monotonic() + 10
        while (home / JOBS / first).exists() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
    assert not (home / JOBS / first).exists()


async def test_without_a_runner_a_job_is_kept_and_a_deletion_says_so(
    start: Start, home: Path
) -> None:
    async with start(link=Gone()) as client:
        job_id = await made(client)
        assert (await client.get(f"/v1/jobs/{job_id}")).json()["state"] == "queued"
        with pytest.raises(ServiceError):  # http/errors.py answers 503
            await client.delete(f"/v1/jobs/{job_id}")
        assert (await client.get(f"/v1/jobs/{job_id}")).json()["state"] == "cancelled"


# ---- asked again, and what is not delivered -----------------------------------------------------


Restart = Callable[[], httpx.AsyncClient]


@pytest.fixture
def whole(home: Path) -> Restart:
    """A router of the whole service, with all its layers and one key; each call starts another."""
    home.mkdir()
    token, key = new_key("test", [Scope.CLASSIFY], now=datetime.now(UTC))
    rate = RateConfig(texts_per_min=6000)
    KeyStore(home / "keys.json").add(key.model_copy(update={"rate": rate}))

    def router() -> httpx.AsyncClient:
        admission = Admission(Keys(home / "keys.json"))
        idempotency = Idempotency(b"of the home, and so of every router")
        api = create_api(StubService(), admission=admission, idempotency=idempotency)
        add_jobs(api, Jobs(home, lambda: "r-1", Gone()), admission)
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(api, raise_app_exceptions=False),
            base_url="http://test",
            headers={"Authorization": f"Bearer {token}"},
        )

    return router


async def post(client: httpx.AsyncClient, texts: Sequence[str], key: str = "") -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post(haproxy.JOBS, json={"texts": list(texts)}, headers=headers)


async def test_a_job_asked_for_again_with_its_key_is_the_same_job(
    whole: Restart, home: Path
) -> None:
    async with whole() as client:
        first = await post(client, ["a"], "k")
        again = await post(client, ["a"], "k")
        assert (first.status_code, again.status_code) == (202, 202)
        assert again.content == first.content
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotent-replay"] == "true"
        assert (await post(client, ["b"], "k")).json()["error"]["code"] == "idempotency_conflict"
        other = await post(client, ["a"], "k-2")
        plain = [await post(client, ["a"]) for _ in range(2)]
    ids = {one.json()["id"] for one in (first, other, *plain)}
    assert len(ids) == len(JobStore(home).all()) == 4


async def test_another_router_knows_it_too_by_the_disk_alone(whole: Restart, home: Path) -> None:
    """Their idempotency keys meet in Redis only; a second job would be paid."""
    async with whole() as one, whole() as two:
        made = await asyncio.gather(*(post(router, ["a"] * 4000, "k") for router in (one, two)))
        again = await post(two, ["a"] * 4000, "k")
    assert len({answer.json()["id"] for answer in (*made, again)}) == 1, made
    (job,) = JobStore(home).all()
    assert (home / JOBS / job.id / TEXTS).read_text().count("\n") == 4000


async def test_more_texts_than_a_key_may_ever_send_are_refused_for_good(
    whole: Restart, home: Path
) -> None:
    """It was a 429 with Retry-After, for ever."""
    async with whole() as client:
        for _ in range(2):
            refused = await post(client, ["a"] * 7000)
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "over_limit")
            assert "retry-after" not in refused.headers
            assert "7,000 texts" in refused.json()["error"]["message"]
            assert "6,000 per minute" in refused.json()["error"]["message"]
        assert (await post(client, ["a"] * 6000)).status_code == 202
        later = await post(client, ["a"] * 6000)
        assert (later.status_code, later.json()["error"]["code"]) == (429, "rate_limited")
        assert int(later.headers["retry-after"]) > 1
    assert len(JobStore(home).all()) == 1


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(errno.ENOSPC, 507, "disk_full"), (errno.EDQUOT, 507, "disk_full"),
     (errno.EROFS, 503, "storage_failed"), (errno.EIO, 503, "storage_failed")],
)  # fmt: skip
async def test_a_disk_that_does_not_take_a_job_is_told_and_no_text_is_counted(
    whole: Restart,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
    code: str,
) -> None:
    """It was a 500."""

    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "/a/path/of/the/machine")

    async with whole() as client:
        with monkeypatch.context() as broken:
            broken.setattr("serve_app.jobs.store.write_json", fails)
            for _ in range(3):
                refused = await post(client, [SECRET] * 5000, "k")
                assert refused.status_code == status, refused.text
                assert refused.json()["error"]["code"] == code
                assert "retry-after" not in refused.headers
                assert "/a/path" not in refused.text
        assert list((home / JOBS).iterdir()) == []
        assert (await post(client, [SECRET] * 5000, "k")).status_code == 202


async def test_texts_of_a_job_that_finds_the_queue_full_are_not_counted(whole: Restart) -> None:
    async with whole() as client:
        for _ in range(MAX_QUEUED_PER_KEY):
            assert (await post(client, ["a"])).status_code == 202
        for _ in range(3):
            full = await post(client, ["a"] * 5000)
            assert full.json()["error"]["code"] == "too_many_jobs"
        classified = await client.post("/v1/classify", json={"texts": ["a"] * 256})
        assert classified.status_code == 200


async def test_null_is_absent(start: Start) -> None:
    async with start(link=Gone()) as client:
        body = {"texts": ["a"], "file": None, "text_column": None, "id_column": None}
        assert (await client.post("/v1/jobs", json=body)).status_code == 202


def test_a_job_whose_end_could_not_be_written_runs_again(home: Path) -> None:
    """The disk was full at that moment: it was left as running, for ever."""
    home.mkdir()
    store = JobStore(home)
    job = Job(id="a" * 32, owner="k", release="r-1", rows=1, created_s=time.time(), attempts=1)
    runner = Runner(home, JobsConfig(), python("exit(0)"), os.environ)
    runner.start()
    try:
        store.add(job.model_copy(update={"state": JobState.RUNNING}), [SECRET])
        runner.poke()
        deadline = time.monotonic() + 20
        while (found := store.find(job.id)) and not found.state.is_over:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        runner.stop()
    assert found is not None
    assert (found.state, found.attempts) == (JobState.DONE, 2)


# ---- what is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"texts": []},
        {"texts": ["a"], "file": "a.csv"},
        {"texts": ["a"] * 10_001},
        {"texts": [1]},
        {"texts": ["a"], "text_column": "b"},
        {"file": ""},
        {"file": "a.csv", "shell": "true"},
    ],
)
async def test_a_body_that_does_not_fit_is_refused(start: Start, home: Path, body: Any) -> None:
    async with start() as client:
        assert (await client.post("/v1/jobs", json=body)).status_code == 422
    assert not (home / JOBS).exists()


@pytest.fixture
def inbox(home: Path, start: Start, tmp_path: Path) -> Path:
    """Files inside and outside, and links from one to the other."""
    folder = home / "inbox"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "in.csv").write_text("body\nhello\n")
    (tmp_path / "out.csv").write_text("body\nhello\n")
    (home / "inbox-2").mkdir()
    (home / "inbox-2" / "out.csv").write_text("body\nhello\n")
    (folder / "link.csv").symlink_to(tmp_path / "out.csv")
    (folder / "inner.csv").symlink_to(folder / "sub" / "in.csv")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "script.sh").touch()
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "missing.csv", "../inbox-2/out.csv", "sub/../sub/in.csv", "..", ".", "sub", "link.csv",
        "inner.csv", "folder/out.csv", "script.sh", "/etc/passwd", "//etc/passwd", "a\0.csv",
        "~/x.csv", "sub\\..\\in.csv", "{inbox}/sub/in.csv",
    ],
)  # fmt: skip
async def test_no_name_leads_out_of_the_inbox_and_all_refusals_are_alike(
    start: Start, inbox: Path, name: str
) -> None:
    async with start() as client:
        body = {"file": name.format(inbox=inbox)}
        response = await client.post("/v1/jobs", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "unknown_file"
    assert "There is no such file in the service's inbox" in response.json()["error"]["message"]


async def test_a_file_that_became_a_link_is_not_followed(start: Start, inbox: Path) -> None:
    """It is looked at again when the job's turn comes."""
    async with start() as client:
        running = await made(client)
        await until(client, running, "running")
        waiting = await made(client, {"file": "sub/in.csv", "text_column": "body"})
        (inbox / "sub" / "in.csv").unlink()
        (inbox / "sub" / "in.csv").symlink_to("/etc/passwd")
        await client.delete(f"/v1/jobs/{running}")
        failed = await until(client, waiting, "failed")
        assert "There is no such file" in failed["error"]


def test_names_cannot_become_options(tmp_path: Path) -> None:
    job = Job(
        id="0" * 32, owner="k", release="r-1", file="--help", text_column="--out=/etc",
        id_column="-x", created_s=0.0,
    )  # fmt: skip
    words = score_command(1)(job, tmp_path / "--help", tmp_path / "out")
    assert words[3:5] == ["score", "--background"]
    assert words[5:] == [
        f"--out={tmp_path}/out", "--release=r-1", "--text-column=--out=/etc", "--id-column=-x",
        "--cpus=1", "--", f"{tmp_path}/--help",
    ]  # fmt: skip


def test_every_route_needs_the_scope_to_classify(home: Path) -> None:
    admission = ByHeader()
    add_jobs(FastAPI(), Jobs(home, lambda: "r-1", Gone()), admission)
    assert admission.scopes == [Scope.CLASSIFY]
