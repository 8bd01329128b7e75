"""`python -m train_jobs.samples --rows 5000 --seed 1 --out samples.csv`: invented messages."""

import argparse
from pathlib import Path

from cluster.errors import ConfigError
from train_jobs.samples.generator import write_csv


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train_jobs.samples", description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--label-noise-share", type=float, default=0.02)
    parser.add_argument("--pii-share", type=float, default=0.04)
    options = parser.parse_args(arguments)
    try:
        write_csv(
            options.out,
            options.rows,
            options.seed,
            label_noise_share=options.label_noise_share,
            pii_share=options.pii_share,
        )
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
