"""`firstline releases ...` beside a service that runs on somebody else's cluster."""

import json

import pytest

from cluster.registry import champion
from cluster.releases import Release
from cluster.settings import Settings
from serve_app.cascade.traffic import Routed, only, split
from serve_app.service.state import write_info
from tests.unit.cluster.cli.test_cli import firstline, refused, released
from tests.unit.serve_app.service.test_process import info

__all__ = ["released"]


@pytest.fixture
def canaried(settings: Settings, released: list[Release]) -> list[Release]:
    """The second release answers nine tenths, the first one."""
    first, second = (release.id for release in released)
    routed = Routed(releases={second: 0.9, first: 0.1})
    write_info(settings, info(routed=routed))
    return released


def test_the_list_says_what_each_release_does(canaried: list[Release]) -> None:
    first, second = firstline("releases", "list").out.splitlines()
    assert first.endswith("  answers 0.1")
    assert second.startswith("* ")
    assert second.endswith("  answers 0.9")
    found = json.loads(firstline("releases", "list", "--json").out)
    assert [(item["share"], item["shadow"]) for item in found] == [(0.1, False), (0.9, False)]


def test_a_canary_above_one_half_does_not_get_the_star(
    settings: Settings, released: list[Release]
) -> None:
    first, second = (release.id for release in released)
    write_info(settings, info(routed=split(second, first, 0.9)))
    found = json.loads(firstline("releases", "list", "--json").out)
    assert [(item["champion"], item["share"]) for item in found] == [
        (False, 0.9),
        (True, pytest.approx(0.1)),
    ]


def test_the_star_is_the_running_services_own(settings: Settings, released: list[Release]) -> None:
    """Another home may have moved the alias of a registry that both use."""
    first, second = (release.id for release in released)
    write_info(settings, info(routed=only(first)))
    assert champion(settings) == second
    one, other = firstline("releases", "list").out.splitlines()
    assert (one[:2], other[:2]) == ("* ", "  ")


def test_shadows_and_adaptive_weights_are_listed(
    settings: Settings, released: list[Release]
) -> None:
    first, second = (release.id for release in released)
    write_info(settings, info(routed=Routed(releases={second: 1.0}, shadow=(first,))))
    assert firstline("releases", "list").out.splitlines()[0].endswith("  shadow")
    routed = Routed(releases={second: 0.5, first: 0.5}, adaptive=True)
    write_info(settings, info(routed=routed))
    assert firstline("releases", "list").out.count("answers 0.5, adaptive") == 2


def test_without_a_service_nothing_answers(released: list[Release]) -> None:
    assert "answers" not in firstline("releases", "list").out
    found = json.loads(firstline("releases", "list", "--json").out)
    assert [(item["share"], item["shadow"]) for item in found] == [(None, False)] * 2


def test_a_canary_and_a_shadow_need_a_service_and_a_known_release(
    settings: Settings, released: list[Release]
) -> None:
    first = released[0].id
    refused(firstline("releases", "canary", first), "No service is running", "firstline serve")
    refused(firstline("releases", "shadow", first), "No service is running")
    refused(firstline("releases", "shadow", "--off"), "No service is running")
    for command in ("canary", "shadow"):
        refused(firstline("releases", command, "r-unknown"), "no release 'r-unknown'", first)
    assert champion(settings) == released[1].id


@pytest.mark.parametrize("words", [[], ["r-1", "--off"]])
def test_a_shadow_is_a_release_or_off(settings: Settings, words: list[str]) -> None:
    refused(firstline("releases", "shadow", *words), "or --off to end it")


def test_a_share_that_is_none_is_refused_before_anything_moves(canaried: list[Release]) -> None:
    first, second = (release.id for release in canaried)
    refused(firstline("releases", "canary", first, "--share", "1.5"), "share is 1.5; more than 0")
    refused(firstline("releases", "canary", second), f"{second} is the champion")
