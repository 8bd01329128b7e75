"""LeastOutstanding: which replica of a tier a call goes to. The one with the fewest calls out.

Serve 2.60's own choice looks at the same count, but replaces it with what the replica says on
taking a call. What ends while that word is on its way is then counted as if it ran on, so calls
queue at one replica while another idles: with four lists out, two edges ran at once for 69% of the
time, and do for 97% (docs/performance.md).
"""

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)


class LeastOutstanding(FIFOMixin, RequestRouter):
    """Made by Serve in each router, one for each tier; `app.py` names it."""

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
