"""Scoring without Ray."""

from collections.abc import Iterator, Sequence

from train_jobs.scoring.chunks import Chunk
from train_jobs.scoring.scorer import Order, Scored, scorer_of


def here(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
    """In this process, one after the other."""
    yield from map(scorer_of(order).score, chunks)
