"""How fast a tier works: messages per second, as its calls end."""

from typing import Final


class ServiceRate:
    """Messages per second that a tier finishes when it has all it can take; None until known.

    An exponential mean over the time in which every slot was out, half of it the last
    `half_life_s`. A call that ends while slots are free shows how much the tier can do at least,
    never at most, so it only raises a rate that was too low.
    """

    _MIN_S: Final = 0.1  # of saturation; before, one short call would be the whole estimate

    def __init__(self, half_life_s: float = 0.5) -> None:
        self._half_life_s = half_life_s
        self._messages = 0.0
        self._seconds = 0.0
        self._saturated_s: float | None = None  # counted up to here; None: slots are free

    @property
    def per_s(self) -> float | None:
        return self._messages / self._seconds if self._seconds >= self._MIN_S else None

    def saturated(self, now_s: float) -> None:
        """The last free slot was taken."""
        if self._saturated_s is None:
            self._saturated_s = now_s

    def freed(self) -> None:
        """There is nothing to put into a free slot."""
        self._saturated_s = None

    def finished(self, messages: int, took_s: float, now_s: float) -> None:
        """A call ended, whatever came of it."""
        if self._saturated_s is not None:
            self._add(messages, now_s - self._saturated_s)
            self._saturated_s = now_s
        elif self.per_s is not None and messages > took_s * self.per_s:
            self._add(messages, took_s)

    def _add(self, messages: int, seconds: float) -> None:
        keep = 0.5 ** (seconds / self._half_life_s)
        self._messages = keep * self._messages + messages
        self._seconds = keep * self._seconds + seconds
