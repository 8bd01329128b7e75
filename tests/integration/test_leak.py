"""Personal data stays: 1,000 planted messages, and every byte that leaves the edge is looked at.

The release trusts nothing, so whatever is not pinned is escalated. What reaches a replica is
written down by the replica's own process: a `sitecustomize` on the PYTHONPATH of this test wraps
every method of `Tier` as it is imported, and the product knows nothing of it. A real Redis is
watched by MONITOR, and after the traffic every file of the service and of its Ray, every key of
Redis and every page of figures is searched for what was planted.

Each place is first shown to be watched: a message without personal data must be seen there.
"""

import json
import re
import socket
import threading
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from redis import Redis

from cluster.audit.read import read
from cluster.audit.records import AuditRecord
from cluster.releases import load_release
from cluster.settings import Settings
from serve_app.deploy.config import BudgetConfig, CloudConfig, ServeConfig, TierConfig
from serve_app.guard.config import PiiKind
from serve_app.guard.prepare import prepare
from serve_app.service import lifecycle, process
from serve_app.service.state import ServiceInfo
from tests.support.planted import DEV, Planted, digits_of, plant
from tests.support.planted_held_out import HELD_OUT
from tests.support.redis_server import RedisServer
from tests.support.serving import make_pair, make_release
from tests.support.toys import message
from tests.support.waiting import free_port, wait_for

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

MESSAGES: Final = 1000
PER_REQUEST: Final = 50
# Shorter ones (a ZIP code, half a sort code) are found in any timestamp.
SHORTEST_NEEDLE: Final = 8
RECORD: Final = "LEAK_TEST_RECORD"
PAGES: Final = ("/metrics", "/v1/report", "/v1/stats", "/v1/release", "/openapi.json")
RECORDER: Final = f'''
import functools, importlib.machinery, inspect, os, sys

def _record(tier, name, arguments):
    path = os.path.join(os.environ["{RECORD}"], f"{{tier._leak_role}}-{{os.getpid()}}")
    with open(path, "a") as file:
        print(name, ascii(arguments), file=file)

def _watch_init(method):
    @functools.wraps(method)
    def watched(self, path, *rest, **named):
        self._leak_role = os.path.basename(str(path))
        return method(self, path, *rest, **named)
    return watched

def _watch(name, method):
    if inspect.iscoroutinefunction(method):
        @functools.wraps(method)
        async def watched(self, *rest, **named):
            _record(self, name, (rest, named))
            return await method(self, *rest, **named)
    else:
        @functools.wraps(method)
        def watched(self, *rest, **named):
            _record(self, name, (rest, named))
            return method(self, *rest, **named)
    return watched

class _Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name != "serve_app.tiers.replica":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            for key, value in list(vars(module.Tier).items()):
                if inspect.isfunction(value):
                    watched = _watch_init(value) if key == "__init__" else _watch(key, value)
                    setattr(module.Tier, key, watched)
        spec.loader.exec_module = exec_module
        return spec

if "{RECORD}" in os.environ:
    sys.meta_path.insert(0, _Finder)
'''


class RedisWatch:
    """All that clients say to a Redis, as MONITOR repeats it."""

    def __init__(self, port: int) -> None:
        self._link = socket.create_connection(("127.0.0.1", port))
        self._link.sendall(b"MONITOR\r\n")
        self._said = bytearray()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while block := self._link.recv(1 << 16):
            self._said += block

    def said(self) -> bytes:
        return bytes(self._said)


@dataclass
class Watched:
    settings: Settings
    info: ServiceInfo
    http: httpx.Client
    record: Path
    redis: RedisServer
    monitor: RedisWatch
    replies: bytearray = field(default_factory=bytearray)

    def classify(self, texts: list[str], **flags: bool) -> list[dict[str, Any]]:
        key = {"idempotency-key": uuid.uuid4().hex}
        body = {"texts": texts, **flags}
        response = self.http.post("/v1/classify", json=body, headers=key)
        assert response.status_code == 200, response.text
        self.replies += response.content
        answers: list[dict[str, Any]] = response.json()["answers"]
        return answers

    def seen_by(self, role: str) -> bytes:
        """What that tier's replicas were called with; they know their bundle by its folder."""
        release = load_release(self.settings, self.info.release)
        bundle = release.cloud_path if role == "cloud" else release.edge_path
        return b"".join(path.read_bytes() for path in self.record.glob(f"{bundle.name}-*"))

    def places(self) -> Iterator[tuple[str, bytes]]:
        """Everything but the edge replicas, which may see the masked texts."""
        yield "the cloud", self.seen_by("cloud")
        yield "Redis' clients", self.monitor.said()
        with Redis(port=self.redis.port) as client:
            for key in client.scan_iter():
                yield f"Redis {key!r}", key + (client.dump(key) or b"")
        for page in PAGES:
            yield page, self.http.get(page).content
        yield "the answers", bytes(self.replies)
        for folder in (self.settings.home, *_session_dirs(self.info)):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    yield str(path), path.read_bytes()


def _session_dirs(info: ServiceInfo) -> set[Path]:
    """The session folders of Ray into which a process of this service writes."""
    assert info.haproxy_dir is not None
    found: set[Path] = set()
    for pid in process.marked(info.haproxy_dir):
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = link.readlink()
            except OSError:  # closed, or the process has ended
                continue
            found.update(up for up in target.parents if up.name.startswith("session_2"))
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("leak")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(RECORDER)
    record = folder / "record"
    record.mkdir()
    with pytest.MonkeyPatch.context() as patch, RedisServer() as redis:
        patch.setenv("PYTHONPATH", str(folder / "site"))
        patch.setenv(RECORD, str(record))
        patch.setenv("FIRSTLINE_REDIS_URL", redis.url)
        settings = Settings(home=folder / "home")
        pair = make_pair(folder / "bundles")
        release = make_release(settings, pair.edge, pair.cloud, threshold=2.0)
        monitor = RedisWatch(redis.port)
        info = lifecycle.start(settings, release.id, _config())
        try:
            with httpx.Client(base_url=info.url, timeout=60) as http:
                yield Watched(settings, info, http, record, redis, monitor)
        finally:
            lifecycle.stop(settings)


def _config() -> ServeConfig:
    """Nothing that is there to hold traffic back holds it back here."""
    return ServeConfig(
        port=free_port(),
        explore_share=0.5,
        edge=TierConfig(max_replicas=1, timeout_s=30),
        cloud=CloudConfig(max_replicas=1, timeout_s=30),
        budget=BudgetConfig(share=1.0),
    )


def _planted() -> list[Planted]:
    half = MESSAGES // 2
    return [*plant(DEV, half, 11, fair=True), *plant(HELD_OUT, half, 12, fair=True)]


def _needles(planted: Planted) -> set[bytes]:
    """A value as it was written, as it is normalised, as JSON escapes it, and its bare digits."""
    text, digits = planted.value.text, digits_of(planted.value.text)
    known = unicodedata.normalize("NFKC", text)
    forms = {
        text,
        known,
        " ".join(known.split()),
        json.dumps(text)[1:-1],
        ascii(text)[1:-1],
        digits,
    }
    forms |= set(planted.value.words)
    return {form.encode() for form in forms if len(form) >= SHORTEST_NEEDLE}


def _holds(content: bytes, needle: bytes) -> bool:
    """A bare number counts where it stands alone: eight digits are in many a hash and timestamp."""
    if needle not in content or not needle.isdigit():
        return needle in content
    return re.search(rb"(?<![0-9a-fA-F.])%b(?![0-9a-fA-F])" % needle, content) is not None


def test_what_is_pinned_reaches_nothing_but_the_edge(watched: Watched) -> None:
    marks = [f"unpinned{letter * 3}" for letter in "abcde"]
    controls = [message("negative", hard=True, extra=mark) for mark in marks]
    for _ in range(2):  # the second time from the cache
        assert {answer["route"] for answer in watched.classify(controls)} == {"cloud"}
    planted = _planted()
    texts = [message("negative", hard=True, extra=one.text) for one in planted]
    for first in range(0, MESSAGES, PER_REQUEST):
        block = texts[first : first + PER_REQUEST]
        for answers in watched.classify(block), watched.classify(block, explain=True):
            where = {(answer["route"], answer["reason"]) for answer in answers}
            assert where == {("edge", "pii_pinned")}

    cloud = watched.seen_by("cloud")
    assert all(mark.encode() in cloud for mark in marks), "the recorder does not record"
    assert prepare(texts[0]).text.encode("ascii", "backslashreplace") in watched.seen_by("edge")
    placeholders = [kind.placeholder.encode() for kind in PiiKind]
    assert not any(one in cloud for one in placeholders), "the masked text stays too"
    assert wait_for(lambda: b"cache:" in watched.monitor.said(), 10), "Redis is not used"
    records = [one for one in read(watched.settings.audit_dir) if isinstance(one, AuditRecord)]
    assert sum(one.reason == "pii_pinned" for one in records) == 2 * MESSAGES

    needles = {needle for one in planted for needle in _needles(one)}
    assert len(needles) > MESSAGES
    places = list(watched.places())
    assert any("/logs/" in name for name, _ in places), "Ray's logs were not found"
    leaks = {name for name, content in places if any(_holds(content, needle) for needle in needles)}
    assert leaks == set()


def test_a_pinned_text_is_never_kept_in_the_cache(watched: Watched) -> None:
    """The same message twice: both times the edge model runs, and Redis hears nothing new."""
    text = message("negative", hard=True, extra="write to quite.another@example.org")
    watched.classify([text])
    calls = watched.seen_by("edge").count(b"[EMAIL]")
    watched.classify([text])
    assert wait_for(lambda: watched.seen_by("edge").count(b"[EMAIL]") > calls, within_s=5)
    assert b"quite.another" not in watched.monitor.said()
