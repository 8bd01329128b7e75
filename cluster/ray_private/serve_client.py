"""Serve's controller, as Ray's dashboard speaks with it.

`serve deploy` goes through the dashboard (public: PUT /api/serve/applications/), and a local
service runs none: it is a process more, a port more, and the job API, which runs anybody's code.
"""

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import context
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema


def app_configs() -> Mapping[str, ServeApplicationSchema]:
    """The applications that were deployed by config, by name.

    Public: serve.status(), which does not tell what an application was made from.
    """
    client = context._get_global_client()
    assert client is not None
    found: Mapping[str, ServeApplicationSchema]
    found = ray.get(client._controller.get_app_configs.remote())
    return found


def deploy(config: ServeDeploySchema) -> None:
    """Makes these the applications that are deployed by config; returns before they run.

    Public: serve.run(), which has no `user_config`, and so starts new replicas where a config would
    tell the ones that run.
    """
    client = context._get_global_client()
    assert client is not None
    client.deploy_apps(config)


def forget_controller() -> None:
    """Before ray.shutdown(), where this process may join another cluster afterwards.

    Serve keeps its controller's handle, and knows a new session by the driver's job id. Those are
    counted from one in each cluster, so the next cluster's driver can have the same. Public: none;
    serve.shutdown() would end the service.
    """
    if ray.is_initialized():
        context._set_global_client(None)  # type: ignore[no-untyped-call]


def handle_of(deployment: str, app: str) -> DeploymentHandle[Any]:
    """A handle to what may not be deployed yet: a call on it waits until there is a replica.

    In `serve deploy` all applications start at once, and the router asks for its releases' handles.
    Public: the same function, which raises where the deployment is not there.
    """
    return serve.get_deployment_handle(deployment, app_name=app, _check_exists=False)
