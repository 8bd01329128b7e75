"""The options of the service: few, and one that is gone is named with the value that holds now."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import BaseModel, ValidationError

from cluster.cli.serve import serve_config
from cluster.errors import ConfigError
from cluster.files import write_json
from cluster.settings import load_settings
from serve_app.access import abuse
from serve_app.cascade.circuit_breaker import CircuitBreaker
from serve_app.cascade.escalation import EscalationBudget
from serve_app.cascade.traffic import only
from serve_app.contracts import AbuseKind
from serve_app.deploy import app, config
from serve_app.deploy.config import ReleaseArgs, RouterArgs, ServeConfig
from serve_app.deploy.fixed import FIXED
from serve_app.http import idempotency
from serve_app.jobs import routes
from serve_app.service.state import STATE, ServiceInfo, read_info, write_info
from serve_app.tiers import batching

_BREAKER: Final = inspect.signature(CircuitBreaker).parameters
_BUDGET: Final = inspect.signature(EscalationBudget).parameters
# The values of today, by the name of the option that each once was.
NOW: Final[Mapping[str, float]] = {
    "edge.max_batch": batching.MAX_BATCH,
    "edge.max_queued": batching.MAX_QUEUED,
    "edge.max_wait_s": batching.MAX_WAIT_S,
    "edge.target_ongoing_requests": app.TARGET_LISTS,
    "edge.worth_a_call": batching.WORTH_A_CALL,
    **{f"breaker.{name}": _BREAKER[name].default for name in FIXED["breaker"]},
    "budget.floor_per_min": _BUDGET["floor_per_min"].default,
    "idempotency.ttl_s": idempotency.TTL_S,
    "idempotency.wait_s": idempotency.WAIT_S,
    "idempotency.max_entries": idempotency.MAX_ENTRIES,
    "idempotency.max_bytes": idempotency.MAX_BYTES >> 20,
    "abuse.slow_ms": 1000 * abuse.SLOW_S,
    "abuse.block_s": abuse.BLOCK_S,
    "abuse.max_keys": abuse.MAX_KEYS,
    "edge.upscale_delay_s": app._UPSCALE_DELAY_S,
    "edge.look_back_s": app._LOOK_BACK_S,
    "edge.calls_per_replica": config._CALLS_PER_REPLICA,
    "jobs.max_queued": routes.MAX_QUEUED,
    "jobs.max_queued_per_key": routes.MAX_QUEUED_PER_KEY,
}
ALL_FIXED: Final = [(part, name) for part, options in FIXED.items() for name in options]


def leaves(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        yield from leaves(value) if isinstance(value, Mapping) else [name]


def test_there_are_few_options() -> None:
    """Each has somebody who sets it; before one is added, write down who that is."""
    assert len(list(leaves(ServeConfig().model_dump()))) <= 30


@pytest.mark.parametrize(("part", "name"), ALL_FIXED)
def test_an_option_that_is_fixed_now_is_refused_by_its_name_and_value(
    part: str, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "serving.json"
    write_json(file, {part: {name: 1}})
    with pytest.raises(ConfigError) as refused:
        serve_config(file, "127.0.0.1", 8000)
    assert f"{part}.{name}: {FIXED[part][name]}" in str(refused.value)
    assert "fixed" in str(refused.value)


@pytest.mark.parametrize("model", [ServeConfig, RouterArgs, ReleaseArgs])
def test_so_is_one_in_a_serve_yaml_of_ones_own(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="at most 24 messages"):
        model.model_validate({"release": "latest", "edge": {"max_batch": 8, "max_replicas": 1}})


@pytest.mark.parametrize(("option", "value"), NOW.items())
def test_the_value_that_a_refusal_names_is_the_one_that_holds(option: str, value: float) -> None:
    part, _, name = option.partition(".")
    figures = re.findall(r"\d[\d,]*(?:\.\d+)?", FIXED[part][name])
    assert value in [float(figure.replace(",", "")) for figure in figures]


@pytest.mark.parametrize(("kind", "rule"), abuse.RULES.items())
def test_so_do_those_of_the_rules_against_abuse(kind: AbuseKind, rule: abuse.AbuseRule) -> None:
    said = FIXED["abuse"][kind.value]
    assert f"slowed at {rule.slow_at:g} and blocked at {rule.block_at:g};" in said


def test_a_router_is_told_by_what_names_it_may_be_asked() -> None:
    config = ServeConfig(host="0.0.0.0", allowed_hosts=("firstline.example",))
    args = config.router_args(load_settings().home)
    assert (args.host, args.allowed_hosts) == ("0.0.0.0", ("firstline.example",))
    assert RouterArgs().host == "127.0.0.1", "closed on doubt, where `serve deploy` says nothing"
    with pytest.raises(ValidationError, match="'http://x' is no host"):
        ServeConfig(allowed_hosts=("http://x",))


@pytest.mark.parametrize("part", ["breaker", "idempotency", "abuse"])
def test_an_empty_part_that_is_gone_is_refused_in_words(part: str, tmp_path: Path) -> None:
    file = tmp_path / "serving.json"
    write_json(file, {part: {}})
    with pytest.raises(ConfigError, match=f"{part}: nothing of it can be set"):
        serve_config(file, "127.0.0.1", 8000)


def test_a_service_of_an_older_version_is_still_found() -> None:
    """It wrote down every option there was, and must be seen and stopped all the same."""
    settings = load_settings()
    config = ServeConfig(routers=2)
    info = ServiceInfo(
        host="127.0.0.1", port=8000, ray_address="auto", routed=only("r-1"),
        config=config, started_at="2026-11-30T00:00:00+00:00",
    )  # fmt: skip
    write_info(settings, info)
    path = settings.home / STATE
    written = json.loads(path.read_text())
    for part, name in ALL_FIXED:
        written["config"].setdefault(part, {})[name] = {} if part == "abuse" else 1
    write_json(path, written)
    assert read_info(settings) == info
