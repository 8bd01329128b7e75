"""tier -> Ray actor options: how many CPUs a replica takes, and on which nodes it may run."""

from typing import Any, Final

from cluster.bundles import Role

LABEL: Final = "tier"


def actor_options(tier: Role, *, cpus: float, by_label: bool = False) -> dict[str, Any]:
    """What Ray needs to place one replica of a tier.

    `by_label` keeps it on nodes that were started with `--labels tier=edge` (or `cloud`). It is
    off unless asked for, since on a cluster without such nodes the replica would wait for ever.
    """
    options: dict[str, Any] = {"num_cpus": cpus}
    if by_label:
        options["label_selector"] = {LABEL: tier}
    return options
