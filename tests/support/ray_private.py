"""What tests need of private Ray, to make Serve's own objects without Serve. Only this names it,
and the tests of cluster/ray_private, which are about it.
"""

from typing import Any

from ray.serve import context
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve._private.serialization import RPCSerializer
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter

__all__ = ["DeploymentHandleSource", "DeploymentID", "RPCSerializer", "chosen", "is_forgotten"]


async def chosen(router: RequestRouter) -> ReplicaID:
    """Where Serve would send the next call."""
    metadata = RequestMetadata(request_id="1", internal_request_id="1")
    replica: Any = await router._choose_replica_for_request(PendingRequest([], {}, metadata))
    found: ReplicaID = replica.replica_id
    return found


def is_forgotten() -> bool:
    """This process keeps no handle of a controller."""
    return context._global_client is None
