"""What Serve's applications and deployments are called."""

from typing import Final

ROUTER_APP: Final = "firstline-router"
ROUTER: Final = "router"
LATEST: Final = "latest"
CARD: Final = "card"


def release_app(release_id: str) -> str:
    """The name of the application that serves a release."""
    return f"release-{release_id}"
