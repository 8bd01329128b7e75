"""`firstline releases ...`: list and move them."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cluster.cli.report import amount
from cluster.cli.terminal import Json, friendly, print_json, say
from cluster.errors import ConfigError, RegistryError, ServiceError
from cluster.settings import Settings, load_settings

commands = typer.Typer()


@commands.command("list")
@friendly
def releases_list(as_json: Json = False) -> None:
    """List every registered release, and its share of a running service; `*` is the champion.

    While a service runs here, that is its champion; else the one that the next one starts with.

    Example: firstline releases list
    """
    from dataclasses import asdict, replace

    from cluster.registry import list_here, list_registered

    settings = load_settings()
    try:
        found = list_registered(settings)
    except RegistryError as error:
        say(f"{error} Here is what is on this disk.")
        found = list_here(settings)
    routed = _routed(settings)
    if routed is not None:
        found = [replace(item, champion=item.id == routed.champion) for item in found]
    if as_json:
        print_json([{**asdict(item), "share": _share(routed, item.id),
                     "shadow": _is_shadow(routed, item.id)} for item in found])  # fmt: skip
        return
    if not found:
        say("No release is registered. Run `firstline tune`.")
    for item in found:
        typer.echo(f"{'*' if item.champion else ' '} {item.id}  {_promises(item)} at "
                   f"{item.confidence:.0%}  edge {item.edge_sha256[:12]}  "
                   f"cloud {item.cloud_sha256[:12]}  {item.created_at}"
                   f"{_does(routed, item.id)}")  # fmt: skip


def _routed(settings: Settings) -> Any:
    """What the service that runs here is told; None without one."""
    from serve_app.service.state import is_alive, read_info

    info = read_info(settings)
    return info.routed if info and is_alive(info) else None


def _share(routed: Any, release: str) -> float | None:
    share: float | None = routed.releases.get(release) if routed else None
    return share


def _is_shadow(routed: Any, release: str) -> bool:
    return bool(routed and release in routed.shadow)


def _does(routed: Any, release: str) -> str:
    """What a release does in the running service, in words."""
    share = _share(routed, release)
    if share is not None:
        return f"  answers {share:.4g}" + (", adaptive" if routed.adaptive else "")
    return "  shadow" if _is_shadow(routed, release) else ""


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
    from tune.certificate.recertify import certificates

    found = fetch_release(load_settings(), release)
    made = {name: one.model_dump(mode="json") for name, one in certificates(found).items()}
    print_json({"manifest": found.manifest.model_dump(mode="json"), "policy": found.policy,
            "certificates": made, "prices": found.prices})  # fmt: skip


def _move(settings: Settings, target: str, alias: Callable[[], Any]) -> None:
    """Moves a running service first, the alias after: the registry never names what is not up.

    What the registry would refuse, or that it is away, is said before anything moves.
    """
    from cluster.registry import check_promotable
    from serve_app.service import lifecycle, releases

    check_promotable(settings, target)
    found = lifecycle.status(settings)
    if found.starting:
        raise ServiceError(f"Nothing was moved: {found.problems[0]}. Try again once it answers.")
    running = found.running
    if running:
        releases.promote(settings, target)
    alias()
    say(f"{target} is the champion{' and answers now' if running else ''}.")


@commands.command("promote")
@friendly
def releases_promote(release: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Make a release the champion; a running service moves to it without a restart.

    A canary ends with it.

    Example: firstline releases promote r-0123456789
    """
    from cluster.registry import fetch_release, promote

    settings = load_settings()
    fetch_release(settings, release)
    _move(settings, release, lambda: promote(settings, release))


@commands.command("canary")
@friendly
def releases_canary(
    release: Annotated[str, typer.Argument(help="Its id.")],
    share: Annotated[float, typer.Option(help="Of the users, between 0 and 1.")] = 0.1,
    adaptive: Annotated[
        bool, typer.Option(help="Move the share after the feedback, every 10 minutes.")
    ] = False,
) -> None:
    """Let a release answer a share of the users of the running service; the others see no change.

    Example: firstline releases canary r-0123456789 --share 0.1
    """
    from cluster.registry import fetch_release
    from serve_app.service import releases

    settings = load_settings()
    fetch_release(settings, release)
    info = releases.canary(settings, release, share, adaptive=adaptive)
    say(f"{release} answers {info.routed.releases[release]:.4g} of the users, {info.release} the "
        f"others. Compare them with GET {info.url}/v1/report; then `firstline releases promote "
        f"{release}`, or `firstline releases rollback`.")  # fmt: skip


@commands.command("shadow")
@friendly
def releases_shadow(
    release: Annotated[str | None, typer.Argument(help="Its id.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Let no release see in silence.")] = False,
) -> None:
    """Let a release see every message of the running service without answering any.

    Example: firstline releases shadow r-0123456789
    """
    from cluster.registry import fetch_release
    from serve_app.service import releases

    if (release is None) != off:
        raise ConfigError("Give a release to see every message, or --off to end it, and not both.")
    settings = load_settings()
    if release is not None:
        fetch_release(settings, release)
    info = releases.shadow(settings, release)
    say(f"{release} sees every message. What it would have answered: GET {info.url}/v1/report"
        if release else "No release sees messages in silence any more.")  # fmt: skip


@commands.command("rollback")
@friendly
def releases_rollback() -> None:
    """Take the canary out; without one, go back to the release that answered before.

    A running service moves at once.

    Example: firstline releases rollback
    """
    from cluster.registry import note_champion, rollback, rollback_target
    from serve_app.service import releases

    settings = load_settings()
    routed = _routed(settings)
    if routed is not None and len(routed.releases) > 1:
        say(f"{releases.rollback(settings).release} answers alone again.")
        return
    try:
        target = rollback_target(settings)
    except RegistryError as error:
        if routed is None:
            raise
        # The way back has to work now: the service knows who answered before.
        back = releases.rollback(settings).release
        note_champion(settings, back)
        say(f"{back} answers now. Once the registry is back: firstline releases promote {back}. "
            f"{error}")  # fmt: skip
        return
    _move(settings, target, lambda: rollback(settings))
