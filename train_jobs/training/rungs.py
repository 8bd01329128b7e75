"""Successive halving in step: what Ray Tune tries next of a few candidates.

First every candidate runs a share of its short fit; when all of them have, the best run the whole
of theirs. Tune's own schedulers halve by who comes first, so the same rows and seed could make
another choice. One search runs both rungs in the same worker processes, whose start takes longer
than a trial of few rows.
"""

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher


def goes_on(log_losses: Mapping[int, float], kept: int) -> list[int]:
    """The numbers of the candidates that are run to the end: the default, 0, and the best others.

    Args: log_losses: calibrated, of each candidate after its first share.
    """
    best = sorted(log_losses, key=lambda number: (number > 0, log_losses[number], number))
    return sorted(best[:kept])


class Rungs(Searcher):
    """Suggests `{"point": {"candidate": number, "share": share, "done": n, "of": trials}}`.

    A trial must report `log_loss`. One that ends without it is out.
    """

    def __init__(self, candidates: int, kept: int, first_share: float) -> None:
        super().__init__(metric="log_loss", mode="min")
        self._kept = kept
        self._trials = candidates + kept
        self._next = [(number, first_share) for number in range(candidates)]
        self._is_last = False
        self._begun = 0
        self._running: dict[str, int] = {}
        self._log_losses: dict[int, float] = {}

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """There is nothing to set: the candidates are given, and so is what they are judged by."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while a rung is not ended; FINISHED, a string, after the last."""
        if not self._next:
            return Searcher.FINISHED if self._is_last else None
        number, share = self._next.pop(0)
        self._running[trial_id] = number
        point = {"candidate": number, "share": share, "done": self._begun, "of": self._trials}
        self._begun += 1
        return {"point": point}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """The last trial of the first rung to end makes the second."""
        number = self._running.pop(trial_id)
        if result and not error and "log_loss" in result:
            self._log_losses[number] = float(result["log_loss"])
        if not self._running and not self._next and not self._is_last:
            self._next = [(goes, 1.0) for goes in goes_on(self._log_losses, self._kept)]
            self._is_last = True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search that was cut off is begun anew."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as nothing was saved."""
