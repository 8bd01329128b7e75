"""`python -m tune.sweep`: the search alone, on a table that `firstline tune` has kept."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import FirstlineError
from cluster.progress import stage
from tune.learned import pool as pools
from tune.replay import load_table
from tune.sweep.search import SweepConfig, run, save


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tune.sweep",
        description="Search escalation policies on a replayed table; write the Pareto front.",
    )
    parser.add_argument("--table", type=Path, required=True, help="a replayed Parquet table")
    parser.add_argument("--extra", type=Path, help="another split's, to learn scorers from too")
    parser.add_argument("--out", type=Path, required=True, help="folder for front.json, pareto.png")
    parser.add_argument("--trials", type=int, default=SweepConfig.trials)
    parser.add_argument("--seed", type=int, help="default: FIRSTLINE_SEED")
    options = parser.parse_args(arguments)
    try:
        _search(options)
    except FirstlineError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def _search(options: argparse.Namespace) -> None:
    from cluster.connect import connected
    from cluster.settings import load_settings
    from tune.reporting.pictures import draw_pareto

    table = load_table(options.table)
    extra = None if options.extra is None else load_table(options.extra)
    settings = load_settings()
    out = options.out.absolute()
    config = SweepConfig(
        storage=str(out / "ray"),
        trials=options.trials,
        seed=settings.seed if options.seed is None else options.seed,
    )
    with stage("scorers") as progress:
        pool = pools.pool(table, extra, progress)
    with connected(settings), stage("sweep") as progress:
        result = run(config, table, pool, progress)
    save(result, out / "front.json")
    draw_pareto(out / "pareto.png", result.front, table, config.prices)
    for point in result.front:
        sys.stdout.write(
            f"accuracy {point.outcome.accuracy:.4f}  cost ${point.outcome.cost_usd:.5f}  "
            f"edge {point.outcome.edge_share:.1%}  risk {point.outcome.risk:.2%}  "
            f"{point.policy.score} >= {point.policy.threshold:.4f}\n"
        )
    sys.stdout.write(f"{result.policies_evaluated} policies in {result.seconds:.1f} s -> {out}\n")


if __name__ == "__main__":
    main()
