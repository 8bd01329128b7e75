"""`firstline releases ...`: list and move them."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cluster.cli.report import amount
from cluster.cli.terminal import Json, friendly, print_json, say
from cluster.settings import Settings, load_settings

commands = typer.Typer()


@commands.command("list")
@friendly
def releases_list(as_json: Json = False) -> None:
    """List every registered release; `*` marks the champion.

    Example: firstline releases list
    """
    from dataclasses import asdict

    from cluster.registry import list_registered

    found = list_registered(load_settings())
    if as_json:
        print_json([asdict(item) for item in found])
        return
    if not found:
        say("No release is registered. Run `firstline tune`.")
    for item in found:
        typer.echo(f"{'*' if item.champion else ' '} {item.id}  {_promises(item)} at "
                   f"{item.confidence:.0%}  edge {item.edge_sha256[:12]}  "
                   f"cloud {item.cloud_sha256[:12]}  {item.created_at}")  # fmt: skip


def _promises(item: Any) -> str:
    """What a release promises, in words."""
    return ", ".join(
        f"{kind.replace('_', ' ')} {amount(kind, limit)}" for kind, limit in item.promises.items()
    )


@commands.command("show")
@friendly
def releases_show(release: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Print a release's manifest, policy and every certificate of it as JSON.

    Example: firstline releases show r-0123456789
    """
    from cluster.registry import fetch_release
    from tune.recertify import certificates

    found = fetch_release(load_settings(), release)
    made = {name: one.model_dump(mode="json") for name, one in certificates(found).items()}
    print_json({"manifest": found.manifest.model_dump(mode="json"), "policy": found.policy,
            "certificates": made, "prices": found.prices})  # fmt: skip


def _move(settings: Settings, target: str, alias: Callable[[], Any]) -> None:
    """Moves a running service first, the alias after: the registry never names what is not up."""
    from serve_app import service

    running = service.status(settings).running
    if running:
        service.promote(settings, target)
    alias()
    say(f"{target} is the champion{' and answers now' if running else ''}.")


@commands.command("promote")
@friendly
def releases_promote(release: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Make a release the champion; a running service moves to it without a restart.

    Example: firstline releases promote r-0123456789
    """
    from cluster.registry import fetch_release, promote

    settings = load_settings()
    fetch_release(settings, release)
    _move(settings, release, lambda: promote(settings, release))


@commands.command("rollback")
@friendly
def releases_rollback() -> None:
    """Go back to the release that answered before; a running service moves at once.

    Example: firstline releases rollback
    """
    from cluster.registry import rollback, rollback_target

    settings = load_settings()
    _move(settings, rollback_target(settings), lambda: rollback(settings))
