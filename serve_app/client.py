"""A client of the HTTP endpoint: texts -> answers, in requests of at most 256 texts."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import httpx

from cluster.errors import ServiceError

MAX_TEXTS: Final = 256
_TIMEOUT_S: Final = 60.0


class Firstline:
    """Talks to one Firstline service.

    Raises:
        ServiceError: it cannot be reached, or refused the request; with its own words.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=_TIMEOUT_S, trust_env=False)

    def __enter__(self) -> "Firstline":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET route such as `/v1/stats`."""
        return self._checked("GET", path).json()

    def classify(
        self, texts: Sequence[str], *, explain: bool = False, route_only: bool = False
    ) -> list[Mapping[str, Any]]:
        """One answer per text, in order, from as many requests as it takes."""
        flags = {"explain": explain, "route_only": route_only}
        answers: list[Mapping[str, Any]] = []
        for start in range(0, len(texts), MAX_TEXTS):
            body = {"texts": list(texts[start : start + MAX_TEXTS]), **flags}
            answers += self._checked("POST", "/v1/classify", body).json()["answers"]
        return answers

    def explain(self, text: str) -> Mapping[str, Any]:
        """Why this text would go where, by a preview: the cloud is not paid."""
        explanation: Mapping[str, Any]
        explanation = self.classify([text], explain=True, route_only=True)[0]["explanation"]
        return explanation

    def feedback(self, answer_id: str, label: str) -> None:
        """Tells the right label of an answer."""
        self._checked("POST", "/v1/feedback", {"id": answer_id, "label": label})

    def timed(self, texts: Sequence[str]) -> Iterator[float]:
        """End-to-end milliseconds of one text per request, one after another."""
        for text in texts:
            start = time.perf_counter()
            self.classify([text])
            yield (time.perf_counter() - start) * 1e3

    def _checked(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ServiceError(
                f"No answer from {self.url} ({type(error).__name__}). Is it running? "
                "`firstline status` tells; `firstline serve` starts it."
            ) from None
        if response.is_error:
            raise ServiceError(
                f"{self.url}{path} answered {response.status_code}: {_said(response)}"
            )
        return response


def _said(response: httpx.Response) -> str:
    """The message of an error in our one shape, or the beginning of whatever came."""
    try:
        error = response.json()["error"]
        details = "".join(f"\n  {d['where']}: {d['problem']}" for d in error.get("details", []))
        return f"{error['message']}{details}"
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
