"""The price of each path. An escalated message has paid for both tiers, and is charged for both."""

from pydantic import BaseModel, ConfigDict, Field

from serve_app.contracts import Route


class Prices(BaseModel):
    """USD per message and tier. The defaults are the published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    edge_usd: float = Field(0.001, gt=0)
    cloud_usd: float = Field(0.0136, gt=0)

    def of(self, route: Route) -> float:
        """What a message costs that ends at `route`, the edge having run first."""
        return self.edge_usd if route is Route.EDGE else self.edge_usd + self.cloud_usd

    def per_message(self, cloud_share: float) -> float:
        """Mean cost when `cloud_share` of the messages is escalated."""
        return self.edge_usd + cloud_share * self.cloud_usd

    def savings(self, cost_usd: float) -> float:
        """The share saved against cloud-only, which runs no edge at all. Negative if dearer."""
        return 1.0 - cost_usd / self.cloud_usd
