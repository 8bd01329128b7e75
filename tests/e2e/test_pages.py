"""The pages in a real browser: Debian's Chromium, on a phone and on a desk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from serve_app.decide.cost import Prices
from serve_app.decide.policy import RouterPolicy
from serve_app.decide.scores import MaxProbability
from tests.support.tables import toy_table
from tune.certificate.limits import Limits
from tune.objective import FrontPoint, evaluate
from tune.reporting.models import Latency, Measured, PerTier
from tune.reporting.page import write
from tune.reporting.pictures import draw
from tune.reporting.report import build_report
from tune.select import Wanted, select

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"
)


NOW = "2026-01-01T00:00:00+00:00"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking",
                  "--disable-component-update", "--disable-sync", "--no-first-run"],
        )  # fmt: skip
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    prices = Prices()
    tune, certify, test = (
        toy_table(1500, seed, split) for seed, split in enumerate(("tune", "certify", "test"))
    )
    policy = RouterPolicy(name="one", score=MaxProbability(), threshold=0.9)
    front = [FrontPoint(policy=policy, outcome=evaluate(policy, tune, prices))]
    selection = select(
        front, {}, tune, certify, Wanted(limits=Limits(risk=0.1), prices=prices), NOW
    )
    measured = Measured(
        release="r-toy",
        size_bytes=PerTier(edge=17_000_000, cloud=91_000_000),
        latency_ms=Latency(p50=4.0, p95=9.0),
        stages_s={"dapt": 12.5},
    )
    report = build_report(
        tune=tune, test=test, selection=selection, prices=prices, measured=measured,
        created_at=NOW,
    )  # fmt: skip
    pictures = draw(
        folder, tune=tune, certify=certify, test=test, front=front, selection=selection,
        prices=prices, report=report,
    )  # fmt: skip
    return write(folder, report, pictures)[1]


def _open(browser: Browser, page: Path, width: int) -> tuple[Page, list[str], list[str]]:
    tab = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    errors: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    tab.goto(page.as_uri())
    return tab, asked, errors


@pytest.mark.parametrize("width", [390, 1280])
def test_report_stands_alone_and_fits(browser: Browser, report_page: Path, width: int) -> None:
    tab, asked, errors = _open(browser, report_page, width)
    outside = [url for url in asked if not url.startswith(("file:", "data:"))]
    assert (outside, errors) == ([], [])
    widths = tab.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
    assert len(widths) == 7
    assert all(wide > 100 for wide in widths)
    overflow = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    tab.close()


def test_report_shows_the_certificate_and_what_it_assumes(
    browser: Browser, report_page: Path
) -> None:
    tab, _, _ = _open(browser, report_page, 1280)
    text = tab.inner_text("body")
    for expected in ("r-toy", "exchangeable", "always_cloud", "published_five_factor", "10.0"):
        assert expected in text
    tab.close()
