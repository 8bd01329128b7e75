"""What scales a tier: each replica's own count, and Serve's policy over it."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve_app.deploy.app import POLICY
from serve_app.tiers.autoscaling import LISTS, Load, by_lists


def test_the_load_is_a_mean_over_time_since_it_was_asked_last() -> None:
    now_s = 0.0
    load = Load(clock=lambda: now_s)
    load(2)
    now_s = 1.0
    load(-1)
    now_s = 3.0
    load(-1)
    now_s = 4.0
    assert load.mean() == pytest.approx((2 * 1 + 1 * 2) / 4)
    load(3)
    assert load.mean() == 3.0, "no time has passed, so it is what is on hand"
    now_s = 5.0
    assert load.mean() == 3.0


def context(told: dict[str, float] | None, replicas: int, target: int = 1) -> Any:
    return SimpleNamespace(
        aggregated_metrics=None if told is None else {LISTS: told},
        current_num_replicas=replicas,
        target_num_replicas=target,
        config=AutoscalingConfig(max_replicas=4, target_ongoing_requests=0.5),
    )


def test_as_many_replicas_as_the_lists_are_worth() -> None:
    assert by_lists(context({"a": 0.7, "b": 0.8}, 2)) == (3.0, {})
    assert by_lists(context({"a": 0.0}, 1)) == (0.0, {})


@pytest.mark.parametrize("told", [None, {}])
def test_while_nobody_has_counted_nothing_moves(told: dict[str, float] | None) -> None:
    assert by_lists(context(told, 2, target=3)) == (3, {})


def test_serves_controller_needs_none_of_our_code_for_it() -> None:
    """On somebody else's cluster it may have none; Serve copies the function into it."""
    make: Any = AutoscalingPolicy
    policy = make(policy_function=POLICY)
    written = policy.get_serialized_policy_def()
    assert written is not None
    code = (
        "import sys; sys.path_importer_cache.clear(); sys.meta_path.insert(0, type('No', (), {"
        "'find_spec': staticmethod(lambda name, *_: 1 / 0 if name == 'serve_app' else None)})); "
        f"import cloudpickle; made = cloudpickle.loads({written!r}); "
        "from types import SimpleNamespace as S; "
        "config = S(get_target_ongoing_requests=lambda: 0.5); "
        "print(made(S(aggregated_metrics={'lists': {'a': 1.0}}, current_num_replicas=1, "
        "config=config)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2.0, {})"
