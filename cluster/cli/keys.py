"""`firstline keys ...`: make, list and revoke API keys."""

from typing import Annotated

import typer

from cluster.cli.terminal import Json, friendly, print_json, say
from cluster.errors import ConfigError
from cluster.settings import load_settings

commands = typer.Typer()


@commands.command("add")
@friendly
def keys_add(
    name: Annotated[str, typer.Argument(help="Whose key it is, for the list.")],
    scope: Annotated[
        list[str], typer.Option("--scope", help="classify, feedback or admin; may be repeated.")
    ],
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until it stops working.")
    ] = None,
    for_env: Annotated[
        bool,
        typer.Option("--for-env", help="Write no file; print the entry for FIRSTLINE_API_KEYS."),
    ] = False,
) -> None:
    """Make a key; it is printed once, alone on stdout, and only its hash is kept.

    Example: firstline keys add crm --scope classify --scope feedback
    """
    from serve_app.access.keys import FILE, KeyStore, Scope, new_key, now_utc

    if unknown := [word for word in scope if word not in set(Scope)]:
        raise ConfigError(f"--scope is {unknown[0]!r}; expected {', '.join(Scope)}.")
    token, key = new_key(name, list(map(Scope, scope)), now=now_utc(), expires_days=expires_days)
    if for_env:
        say(key.model_dump_json(exclude_none=True))
    else:
        store = KeyStore(load_settings().home / FILE)
        store.add(key)
        say(f"Key {key.id} of {key.name}: {', '.join(key.scopes)}. Running services know it within "
            "a second. This is the only time that it is shown:")  # fmt: skip
    typer.echo(token)


@commands.command("list")
@friendly
def keys_list(as_json: Json = False) -> None:
    """List the keys in <home>/keys.json, without their hashes.

    Example: firstline keys list
    """
    from serve_app.access.keys import FILE, KeyStore, now_utc

    found = KeyStore(load_settings().home / FILE).list()
    if as_json:
        print_json([key.model_dump(mode="json", exclude={"sha256"}) for key in found])
        return
    if not found:
        say("No key is set. Make one with `firstline keys add NAME --scope classify`.")
    for key in found:
        until = f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "for ever"
        if key.expired(now_utc().timestamp()):
            until = f"expired {key.expires_at:%Y-%m-%d}"
        typer.echo(f"{key.id}  {key.name}  {', '.join(key.scopes)}  "
                   f"since {key.created_at:%Y-%m-%d}, {until}")  # fmt: skip


@commands.command("revoke")
@friendly
def keys_revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")]) -> None:
    """Revoke a key; running services refuse it within a second.

    Example: firstline keys revoke 0123456789ab
    """
    from serve_app.access.keys import FILE, KeyStore

    key = KeyStore(load_settings().home / FILE).revoke(key_id)
    say(f"Key {key.id} of {key.name} is revoked.")
