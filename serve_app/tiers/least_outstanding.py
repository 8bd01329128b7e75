"""Which replica of a tier a call goes to: the one with the fewest calls out, by our own count.

Serve tells its request router, which this is, what replicas there are. Where all of them are on
this host, calls go over connections (local_socket.py), and this only says where to. Else they go
through Serve's handle, and it chooses among them.

Serve 2.60's own choice looks at the same count, but replaces it with what the replica says on
taking a call. What ends while that word is on its way is then counted as if it ran on, so calls
queue at one replica while another idles: with four lists out, two edges ran at once for 69% of the
time, and do for 97% (docs/performance.md).

Serve hands each process a copy of this module with the class, so what they share is in
local_socket.py.
"""

from typing import Any

import ray
from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from serve_app.tiers.local_socket import ADDRESS
from serve_app.tiers.socket_client import pool_of


class LeastOutstanding(FIFOMixin, RequestRouter):
    """Made by Serve in each process that calls a tier; `serve_app/deploy/app.py` names it."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Args: tier: its name in `pool_of`."""
        self._connections = pool_of(kwargs["tier"])

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        here = ray.get_runtime_context().get_node_id()
        near = [replica for replica in replicas if replica.node_id == here]
        addresses = {replica.replica_metadata.get(ADDRESS) for replica in near}
        everywhere = len(near) == len(replicas) and None not in addresses
        self._connections.follow(frozenset(map(str, addresses)) if everywhere else frozenset())

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All of them: Serve takes the one with the lowest count."""
        return [candidate_replicas]

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """A replica's word counts where there is no count yet, and where it refused a call: that
        one is not taken off the count when it ends."""
        replica = self.curr_replicas.get(replica_id)
        refused = replica is not None and num_ongoing_requests >= replica.max_ongoing_requests
        if refused or self.replica_queue_len_cache.get(replica_id) is None:
            super().on_new_queue_len_info(replica_id, num_ongoing_requests)
