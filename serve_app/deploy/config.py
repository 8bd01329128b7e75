"""The options of the service, typed, with defaults that work. Unknown keys are refused."""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.access.abuse import AbuseConfig
from serve_app.access.rate_limits import RateConfig
from serve_app.cascade.cache import CacheConfig
from serve_app.cascade.circuit_breaker import CircuitBreaker
from serve_app.cascade.escalation import EscalationBudget, default_budget_share
from serve_app.http.idempotency import IdempotencyConfig
from serve_app.jobs.runner import JobsConfig
from serve_app.request_limits import MAX_TEXTS

MAX_EXPLORE_SHARE: Final = 0.5
_RELEASES_UP: Final = 4  # the champion, the one before, a canary and a shadow

Clock = Callable[[], float]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TierConfig(_Model):
    """How one tier scales, and how much of it may be asked at once."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(2, ge=1)
    cpus: float = Field(0.5, gt=0, description="per replica, as Ray counts them")
    threads: int = Field(1, ge=1, description="of a replica: messages that run side by side")
    target_ongoing_requests: float = Field(1.0, gt=0, description="lists per replica to scale by")
    upscale_delay_s: float = Field(5.0, ge=0)
    downscale_delay_s: float = Field(120.0, ge=0)
    look_back_s: float = Field(5.0, gt=0, description="load is a mean over this long")
    calls_per_replica: int = Field(
        2, ge=1, description="lists a replica holds: one runs, one waits"
    )
    worth_a_call: int = Field(
        16, ge=0, description="messages that wait for each list out before another leaves"
    )
    max_batch: int = Field(24, ge=2, description="messages per list")
    max_queued: int = Field(2048, ge=MAX_TEXTS, description="messages waiting in a router")
    max_wait_s: float = Field(
        0.75, gt=0, description="expected until an answer; with more, a request is refused"
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
        return self.calls_per_replica * self.max_replicas


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


class BreakerConfig(_Model):
    """When the cloud is left alone, see `breakers.CircuitBreaker`."""

    failure_share: float = Field(0.5, gt=0, le=1)
    min_messages: int = Field(20, ge=1)
    window_s: float = Field(10.0, gt=0)
    max_consecutive: int = Field(5, ge=1, description="calls that brought nothing but failures")
    open_s: float = Field(5.0, gt=0, description="until it is tried again")
    probes: int = Field(3, ge=1)

    def made(self, clock: Clock) -> CircuitBreaker:
        return CircuitBreaker(clock, **self.model_dump())


class BudgetConfig(_Model):
    """What may be escalated, see `breakers.EscalationBudget`; per router."""

    share: float | None = Field(
        None, gt=0, le=1, description="of all messages; empty: three times the certified share"
    )
    floor_per_min: int = Field(300, ge=MAX_TEXTS)
    max_per_min: int | None = Field(None, ge=1)

    def made(self, clock: Clock, cloud_share: float) -> EscalationBudget:
        """Args: cloud_share: of the release's certificate, and what is explored."""
        return EscalationBudget(
            clock,
            share=self.share or default_budget_share(cloud_share),
            floor_per_min=self.floor_per_min,
            max_per_min=self.max_per_min,
        )


class RouterConfig(_Model):
    """What every router of a service is told."""

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
    breaker: BreakerConfig = BreakerConfig()
    budget: BudgetConfig = BudgetConfig()
    cache: CacheConfig = CacheConfig()
    idempotency: IdempotencyConfig = IdempotencyConfig()
    rates: RateConfig = RateConfig()
    abuse: AbuseConfig = AbuseConfig()
    jobs: JobsConfig = JobsConfig()


class RouterArgs(RouterConfig):
    """What `build_router` takes."""

    home: Path | None = Field(None, description="empty: FIRSTLINE_HOME")


class ServeConfig(RouterConfig):
    """All that `firstline serve` lets a user set."""

    host: str = "127.0.0.1"
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
