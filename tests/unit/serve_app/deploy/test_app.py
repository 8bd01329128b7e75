"""Configuration of the service: refused when it cannot hold, and one with serve.yaml."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from cluster.bundles import MODEL, MODEL_ANY, with_warnings
from cluster.errors import ReleaseError
from cluster.files import write_json
from cluster.settings import load_settings
from serve_app.cascade.traffic import only
from serve_app.decide.explain import ALTERNATIVES
from serve_app.deploy import app
from serve_app.deploy.app import TARGET_LISTS, build_release, describe
from serve_app.deploy.config import CloudConfig, ReleaseArgs, RouterArgs, ServeConfig, TierConfig
from serve_app.service.rollout import applications
from tests.support.serving import Pair, make_pair, make_release
from tests.support.toys import make_bundle


def test_a_tier_that_cannot_scale_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValidationError, match="max_replicas is 1, less than min_replicas 2"):
        TierConfig(min_replicas=2, max_replicas=1)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_replica"):
        TierConfig.model_validate({"max_replica": 3})


def test_one_key_of_a_tier_leaves_its_others_as_they_are() -> None:
    """The cloud's own defaults too, which are not the edge's."""
    given = {"edge": {"max_replicas": 3}, "cloud": {"max_replicas": 3}}
    config, plain = ServeConfig.model_validate(given), ServeConfig()
    assert config.cloud == plain.cloud.model_copy(update={"max_replicas": 3})
    assert config.cloud.threads != config.edge.threads


@pytest.mark.parametrize("share", [-0.01, 0.51, float("nan")])
def test_at_most_half_of_the_trusted_are_explored(share: float) -> None:
    with pytest.raises(ValidationError, match="explore_share"):
        ServeConfig(explore_share=share)


def test_the_router_is_told_how_much_to_explore() -> None:
    config = ServeConfig(explore_share=0.05)
    router = applications(config, Path("/home"), ["r-1"], routed=only("r-1"))[-1]
    assert RouterArgs.model_validate(router["args"]).explore_share == 0.05


def test_more_calls_are_out_than_one_replica_holds_so_that_load_shows() -> None:
    tier = TierConfig(max_replicas=4)
    assert tier.max_in_flight > TARGET_LISTS * (tier.max_replicas - 1)


def test_a_promotion_always_finds_its_cpus() -> None:
    edge, cloud = TierConfig(max_replicas=3, cpus=1), CloudConfig(max_replicas=3, cpus=1)
    config = ServeConfig(routers=2, router_cpus=0.5, edge=edge, cloud=cloud)
    assert config.cpus_for_promotion == 1 + 4 * (3 + 3)


@pytest.mark.parametrize("artifact", [MODEL, MODEL_ANY])
def test_the_edge_is_told_the_artifact_that_the_release_was_certified_with(
    tmp_path: Path, artifact: str
) -> None:
    """Else its replicas could not know that their CPU runs another one."""
    edge = make_bundle(tmp_path / "made", "edge", needs=("vnni",), anywhere=True)
    pair = Pair(edge, make_bundle(tmp_path / "made", "cloud"))
    release = make_release(load_settings(), pair.edge, pair.cloud, edge_artifact=artifact)
    bound: Any = build_release(ReleaseArgs(release=release.id))._bound_deployment
    tiers = [tier._bound_deployment for tier in bound.init_args[1:]]
    assert [(tier.name, tier.init_kwargs["artifact"]) for tier in tiers] == [
        ("edge", artifact),
        ("cloud", MODEL),
    ]


def test_a_release_that_cannot_be_used_fails_before_the_router_turns_to_it(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "made")
    release = make_release(load_settings(), pair.edge, pair.cloud)
    strange = {**release.policy, "class_margins": {"neutrl": 0.1}}
    with pytest.raises(ReleaseError, match="neutrl"):
        describe(replace(release, policy=strange))
    with pytest.raises(ReleaseError, match="cannot read"):
        describe(replace(release, policy={**release.policy, "surprise": 1}))
    write_json(release.path / ALTERNATIVES, [{"risk": 0.01}])
    with pytest.raises(ReleaseError, match="alternatives"):
        describe(release)


def test_the_card_carries_the_alternatives_as_json(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "made")
    release = make_release(load_settings(), pair.edge, pair.cloud)
    assert describe(release)["alternatives"] == []
    written = [
        {"risk": 0.005, "threshold": 0.95, "edge_share": 0.5, "upper_bound": 0.004,
         "confidence": 0.95}
    ]  # fmt: skip
    write_json(release.path / ALTERNATIVES, written)
    assert describe(release)["alternatives"] == written


def test_the_card_warns_of_what_the_gate_found(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "made")
    assert describe(make_release(load_settings(), pair.edge, pair.cloud))["warnings"] == []
    edge = with_warnings(pair.edge, tmp_path / "edge", ["Poor.", "Small."])
    cloud = with_warnings(pair.cloud, tmp_path / "cloud", ["Poor."])
    assert describe(make_release(load_settings(), edge, cloud))["warnings"] == ["Poor.", "Small."]


def test_serve_yaml_is_what_the_command_deploys() -> None:
    file = Path(app.__file__).parents[1] / "serve.yaml"
    written: dict[str, Any] = yaml.safe_load(file.read_text())
    ServeDeploySchema.model_validate(written)
    config = ServeConfig()
    assert written["http_options"] == {"host": config.host, "port": config.port}
    made = applications(config, Path("/home"), ["latest"], routed=only("latest"))
    # The same applications, with nothing said that is a default.
    builders: tuple[type[BaseModel], ...] = (ReleaseArgs, RouterArgs)
    for ours, theirs, args in zip(made, written["applications"], builders, strict=True):
        full = args.model_validate({**theirs.pop("args"), "home": "/home"})
        assert full.model_dump(mode="json") == ours.pop("args")
        assert theirs == ours


def test_a_promotion_changes_nothing_of_the_router_but_its_user_config() -> None:
    """A changed argument would give the router a new code version, and so new replicas."""
    config, home = ServeConfig(), Path("/home")
    before = applications(config, home, ["r-1", "r-2"], routed=only("r-1"))[-1]
    after = applications(config, home, ["r-1", "r-2"], routed=only("r-2"))[-1]
    assert before.pop("deployments") != after.pop("deployments")
    assert before == after
