"""The `firstline` command: the composition root, the one place that may import from all folders.

Each command reads its options, calls the stage that does the work, and prints. An error that a
user can act on is a paragraph on stderr and exit code 2; `--json` prints what a program reads.
"""

import typer

from cluster.cli import certify, demo, keys, releases, report, score, serve, train, tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Hybrid edge/cloud text classification on Ray, with a certified escalation rule.",
)
for part in (train, tune, certify, report, serve, score, demo):
    app.add_typer(part.commands)
app.add_typer(releases.commands, name="releases", no_args_is_help=True, help="List and move them.")
app.add_typer(keys.commands, name="keys", no_args_is_help=True, help="Who may ask the service.")


def main() -> None:
    """The console script."""
    app(prog_name="firstline")
