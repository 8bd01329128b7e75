"""What every command shares: what it prints where, how errors end, and running as a Ray job."""

import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cluster.errors import FirstlineError
from cluster.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Submit = Annotated[bool, typer.Option("--submit", help="Run as a job on the Ray cluster.")]

_PATH_OPTIONS: Final = frozenset(
    {"--data", "--test", "--unlabelled", "--limits", "--base", "--policy"}
)


def say(line: str = "") -> None:
    typer.echo(line, err=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def friendly(command: Callable[..., Any]) -> Callable[..., Any]:
    """A FirstlineError, or a full disk, becomes a paragraph and exit code 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except FirstlineError as error:
            say(f"firstline: {error}")
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            say(f"firstline: {error.strerror or error}{where}")
        raise typer.Exit(2)

    return wrapped


def submitted(settings: Settings) -> None:
    """Runs these same words, `--submit` left out and paths made absolute, as a Ray job."""
    from cluster.jobs import submit

    words = [word for word in sys.argv[1:] if word != "--submit"]
    raise typer.Exit(submit(with_absolute_paths(words), settings))


def with_absolute_paths(words: Sequence[str]) -> list[str]:
    """The values of path options made absolute; a job runs in another folder."""
    made: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        option, equals, value = word.partition("=")
        if option in _PATH_OPTIONS and equals:
            made.append(f"{option}={_absolute(value)}")
        else:
            made.append(_absolute(word) if before in _PATH_OPTIONS else word)
    return made


def _absolute(value: str) -> str:
    # --base may be a hub id, which is no path here.
    return str(Path(value).absolute()) if Path(value).exists() else value
