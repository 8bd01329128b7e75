"""The options of the service, typed, with defaults that work. Unknown keys are refused.

An option is what an operator has a reason to set: where it listens, how large it is, what may be
spent, kept and asked. What paces the parts is a constant beside the code that it paces.
"""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_app.access.hosts import check_allowed
from serve_app.access.rate_limits import RateConfig
from serve_app.cascade.cache import CacheConfig
from serve_app.cascade.escalation import EscalationBudget, default_budget_share
from serve_app.deploy.fixed import check_fixed
from serve_app.jobs.runner import JobsConfig

MAX_EXPLORE_SHARE: Final = 0.5
_RELEASES_UP: Final = 4  # the champion, the one before, a canary and a shadow
_CALLS_PER_REPLICA: Final = 2  # lists that it holds: one runs, one waits

Clock = Callable[[], float]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_fixed(cls, given: Any) -> Any:
        check_fixed(given)
        return given


class TierConfig(_Model):
    """How one tier scales, and how much of it may be asked at once."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(2, ge=1)
    cpus: float = Field(0.5, gt=0, description="per replica, as Ray counts them")
    threads: int = Field(1, ge=1, description="of a replica: messages that run side by side")
    downscale_delay_s: float = Field(
        120.0, ge=0, description="without load, until a replica is removed"
    )
    timeout_s: float = Field(5.0, gt=0, description="for a message, its wait included")
    by_label: bool = Field(False, description="only on nodes started with --labels tier=<tier>")

    @model_validator(mode="after")
    def _in_order(self) -> "TierConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, less than min_replicas {self.min_replicas}"
            )
        return self

    @property
    def max_in_flight(self) -> int:
        """Lists a router has out at once: enough for as many replicas as there may be, so that
        autoscaling sees the load."""
        return _CALLS_PER_REPLICA * self.max_replicas


class CloudConfig(TierConfig):
    """The cloud's: it runs rarely, so its replica may use both of two cores while it does."""

    threads: int = Field(2, ge=1, description="of a replica: messages that run side by side")
    timeout_s: float = Field(3.0, gt=0, description="for a message, its wait included")


class ReleaseArgs(_Model):
    """What `build_release` takes. `release` is an id, or `latest` on this machine."""

    release: str
    home: Path | None = Field(None, description="empty: FIRSTLINE_HOME")
    edge: TierConfig = TierConfig()
    cloud: CloudConfig = CloudConfig()


class BudgetConfig(_Model):
    """What may be escalated, see `EscalationBudget`; per router."""

    share: float | None = Field(
        None, gt=0, le=1, description="of all messages; empty: three times the certified share"
    )
    max_per_min: int | None = Field(None, ge=1)

    def made(self, clock: Clock, cloud_share: float) -> EscalationBudget:
        """Args: cloud_share: of the release's certificate, and what is explored."""
        return EscalationBudget(
            clock,
            share=self.share or default_budget_share(cloud_share),
            max_per_min=self.max_per_min,
        )


class RouterConfig(_Model):
    """What every router of a service is told."""

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = Field(
        (), description="other names that an open service is asked by, see access/hosts.py"
    )
    routers: int = Field(1, ge=1)
    router_cpus: float = Field(0.5, gt=0)
    explore_share: float = Field(
        0.0,
        ge=0,
        le=MAX_EXPLORE_SHARE,
        description="of the trusted messages, sent to the cloud all the same",
    )
    edge: TierConfig = TierConfig()
    cloud: CloudConfig = CloudConfig()
    budget: BudgetConfig = BudgetConfig()
    cache: CacheConfig = CacheConfig()
    rates: RateConfig = RateConfig()
    jobs: JobsConfig = JobsConfig()

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            check_allowed(name)
        return given


class RouterArgs(RouterConfig):
    """What `build_router` takes."""

    home: Path | None = Field(None, description="empty: FIRSTLINE_HOME")


class ServeConfig(RouterConfig):
    """All that `firstline serve` lets a user set."""

    port: int = Field(8000, ge=1, le=65535)
    allow_open: bool = Field(False, description="any address without API keys")

    def release_args(self, release: str, home: Path) -> ReleaseArgs:
        return ReleaseArgs(release=release, home=home, edge=self.edge, cloud=self.cloud)

    def router_args(self, home: Path) -> RouterArgs:
        shared = {name: getattr(self, name) for name in RouterConfig.model_fields}
        return RouterArgs(home=home, **shared)

    @property
    def cpus_for_promotion(self) -> int:
        """Ray CPUs that hold the routers, and all releases that may be up at once."""
        tiers = (self.edge, self.cloud)
        release = sum(tier.max_replicas * tier.cpus for tier in tiers)
        return ceil(self.routers * self.router_cpus + _RELEASES_UP * release)
