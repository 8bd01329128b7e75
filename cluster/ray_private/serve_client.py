"""Serve's controller, as Ray's dashboard speaks with it.

`serve deploy` goes through the dashboard (public: PUT /api/serve/applications/), and a local
service runs none: it is a process more, a port more, and the job API, which runs anybody's code.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this, and Serve takes seconds to import
    from ray.serve.handle import DeploymentHandle
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema


def _client() -> Any:
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    return client


def app_configs() -> "Mapping[str, ServeApplicationSchema]":
    """The applications that were deployed by config, by name.

    Public: serve.status(), which does not tell what an application was made from.
    """
    import ray

    found: Mapping[str, ServeApplicationSchema]
    found = ray.get(_client()._controller.get_app_configs.remote())
    return found


def deploy(config: "ServeDeploySchema") -> None:
    """Makes these the applications that are deployed by config; returns before they run.

    Public: serve.run(), which has no `user_config`, and so starts new replicas where a config would
    tell the ones that run.
    """
    _client().deploy_apps(config)


def forget_controller() -> None:
    """Before ray.shutdown(), where this process may join another cluster afterwards.

    Serve keeps its controller's handle, and knows a new session by the driver's job id. Those are
    counted from one in each cluster, so the next cluster's driver can have the same. Public: none;
    serve.shutdown() would end the service.
    """
    import ray
    from ray.serve import context

    if ray.is_initialized():
        context._set_global_client(None)  # type: ignore[no-untyped-call]


def handle_of(deployment: str, app: str) -> "DeploymentHandle[Any]":
    """A handle to what may not be deployed yet: a call on it waits until there is a replica.

    In `serve deploy` all applications start at once, and the router asks for its releases' handles.
    Public: the same function, which raises where the deployment is not there.
    """
    from ray import serve

    return serve.get_deployment_handle(deployment, app_name=app, _check_exists=False)
