"""What a cluster is told to run, beside what it runs already."""

from types import SimpleNamespace

import pytest

from cluster.errors import ServiceError
from cluster.ray_private import serve_client
from cluster.settings import load_settings
from serve_app.cascade.traffic import only
from serve_app.deploy.config import ServeConfig
from serve_app.deploy.names import ROUTER_APP, release_app
from serve_app.service.rollout import deploy


@pytest.mark.parametrize("name", [ROUTER_APP, release_app("r-0123456789")])
def test_what_another_version_deployed_is_not_moved(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its builders are gone, so Serve would end with the same application twice, or with none."""
    there = {name: SimpleNamespace(import_path="serve_app.app:build_release")}
    monkeypatch.setattr(serve_client, "app_configs", lambda: there)
    monkeypatch.setattr(serve_client, "deploy", pytest.fail)
    with pytest.raises(ServiceError, match=r"another version of .*`firstline stop`, then"):
        deploy(load_settings(), ServeConfig(), ["r-0123456789"], only("r-0123456789"))
