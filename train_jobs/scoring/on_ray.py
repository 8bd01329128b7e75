"""How chunks are scored: by actors of Ray Data."""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from cluster.errors import FirstlineError, ServiceError
from cluster.settings import load_settings
from train_jobs.scoring.chunks import Chunk
from train_jobs.scoring.parts import is_done
from train_jobs.scoring.scorer import ChunkScorer, Order, Scored, scorer_of

log = logging.getLogger(__name__)

_NICE: Final = 10
_ATTEMPTS: Final = 3  # pools of actors
_SHOWN: Final = 200  # characters of an error of Ray's


class ChunkActor:
    """A Ray Data actor: the fields of a chunk -> the fields of what came of it."""

    def __init__(self, order: Order) -> None:
        if order.background:
            os.nice(_NICE)
        self._scorer: ChunkScorer | FirstlineError
        try:
            self._scorer = scorer_of(order)
        except FirstlineError as error:
            # Of an actor that dies on its way up Ray keeps the words, and not the kind of error.
            self._scorer = error

    def __call__(self, chunk: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self._scorer, FirstlineError):
            raise self._scorer
        return asdict(self._scorer.score(Chunk(**chunk)))


def on_ray(order: Order, chunks: Sequence[Chunk], cpus: int | None) -> Iterator[Scored]:
    """By Ray Data, in a pool of actors with one thread each, in whatever order they get done.

    A pool that lost an actor is started again, for the chunks that have no part yet.

    Raises:
        FirstlineError: what an actor raised; ServiceError: Ray gave up.
    """
    import ray
    from ray.exceptions import RayError

    from cluster.connect import connected

    left = {chunk.index: chunk for chunk in chunks}
    with connected(load_settings(order.home), num_cpus=cpus):
        found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        size = cpus or int(found.get("CPU", 1))
        for attempt in range(_ATTEMPTS):
            try:
                for one in _pooled(order, list(left.values()), size):
                    del left[one.index]
                    yield one
            except (RayError, FirstlineError) as error:
                cause = _cause(error)
                if not isinstance(cause, ServiceError) or attempt == _ATTEMPTS - 1:
                    raise cause from error
                log.warning("%s", cause)
            for chunk in [one for one in left.values() if is_done(order.out, one)]:
                yield Scored(left.pop(chunk.index).index, chunk.rows, time.time(), time.time())
            if not left:
                return


def _pooled(order: Order, chunks: Sequence[Chunk], size: int) -> Iterator[Scored]:
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    _quieten(ray.data.DataContext.get_current())
    names = ray.data.from_items(list(map(asdict, chunks)), override_num_blocks=len(chunks))
    with warnings.catch_warnings():
        # 2.60 has no other way to say that an actor which dies, for want of memory say, is not to
        # be started again without end.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        scored = names.map(
            ChunkActor,  # type: ignore[arg-type]  # a class, of which Ray makes the callable
            fn_constructor_args=(order,),
            compute=ray.data.ActorPoolStrategy(
                size=min(size, len(chunks)), max_tasks_in_flight_per_actor=2
            ),
            num_cpus=0 if order.background else 1,
            max_restarts=0,
        )
    for row in scored.iter_rows():
        yield Scored(**row)


def _quieten(context: Any) -> None:
    """Our progress is told by `cluster.progress`; Ray Data's own bars and notes are off."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what went wrong is raised


def _cause(error: BaseException) -> FirstlineError:
    """Ours, out of what Ray put around it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, FirstlineError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    return ServiceError(
        f"Ray gave up on scoring: {str(error).strip().splitlines()[-1][:_SHOWN]} ... Run the same "
        "command again: it goes on where it stopped."
    )
