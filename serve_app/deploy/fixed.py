"""Options that are fixed values now: a file of an older version is told which, and not only no."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

_TIER: Final[Mapping[str, str]] = {
    "target_ongoing_requests": "a tier scales to 1 list on hand for each replica",
    "upscale_delay_s": "load lasts 5 s before a replica is added",
    "look_back_s": "load is a mean over 5 s",
    "calls_per_replica": "a replica holds 2 lists: one runs, one waits",
    "worth_a_call": "16 messages wait, for each list that is out, before another leaves",
    "max_batch": "a list has at most 24 messages",
    "max_queued": "2048 messages may wait in a router",
    "max_wait_s": "a request that would wait longer than 0.75 s is refused",
}
_RULE: Final = 'a key that is no abuser gets `"watched": false` in keys.json'
# Part -> option -> what holds now.
FIXED: Final[Mapping[str, Mapping[str, str]]] = {
    "edge": _TIER,
    "cloud": _TIER,
    "breaker": {
        "failure_share": "the circuit opens when 0.5 of the messages fail",
        "min_messages": "the circuit opens on a share of at least 20 messages",
        "window_s": "the circuit looks back 10 s",
        "max_consecutive": "the circuit opens on 5 calls in a row that only fail",
        "open_s": "the circuit stays open for 5 s",
        "probes": "3 calls try the cloud again",
    },
    "budget": {"floor_per_min": "300 escalations a minute are always there"},
    "idempotency": {
        "ttl_s": "a key holds for 600 s",
        "wait_s": "a first request in work is waited for 5 s",
        "max_entries": "a router keeps 10,000 responses",
        "max_bytes": "a router keeps 32 MiB of responses",
    },
    "abuse": {
        "flood": f"its key is slowed at 60 and blocked at 600; {_RULE}",
        "sweep": f"its key is slowed at 100 and blocked at 300; {_RULE}",
        "garbage": f"its key is slowed at 100 and blocked at 300; {_RULE}",
        "slow_ms": "a slowed key's requests wait 500 ms",
        "block_s": "a block lasts 300 s",
        "max_keys": "256 keys are watched at a time",
    },
    "jobs": {
        "max_queued": "32 jobs may wait or run",
        "max_queued_per_key": "8 jobs of one API key may wait or run",
    },
}
_GONE: Final = frozenset({"breaker", "idempotency", "abuse"})  # parts without any option left


def check_fixed(given: Any) -> None:
    """Raises ValueError if options that are fixed values now are among those given."""
    told = [
        f"{part}.{name}: {FIXED[part][name]}"
        for part, options in _parts(given).items()
        for name in options
        if name in FIXED[part]
    ]
    told += [
        f"{part}: nothing of it can be set"
        for part, options in _parts(given).items()
        if part in _GONE and not options
    ]
    if told:
        raise ValueError(
            "These are fixed values now and no options. Take them out: " + "; ".join(told) + "."
        )


def without_fixed(given: Any) -> Any:
    """The options that there still are, of those that an older version wrote down."""
    kept = deepcopy(given)
    for part, options in _parts(kept).items():
        for name in FIXED[part]:
            options.pop(name, None)
        if not options:
            del kept[part]
    return kept


def _parts(given: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(given, Mapping):
        return {}
    return {part: given[part] for part in FIXED if isinstance(given.get(part), dict)}
