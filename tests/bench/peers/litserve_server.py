"""LitServe: batches of what waits, its queue over ZeroMQ, one worker and one API server.

Tried on the same cores: its default queue gave 0.7 of this, two workers 0.45 (0.75 with the default
queue), two API servers with the default queue 0.85.
"""

from pathlib import Path
from typing import Any

import litserve as ls

from tests.bench.peers.model import Model, parser


class Edge(ls.LitAPI):  # type: ignore[misc]
    """Batches what waits; the model runs the batch one message at a time, as exactly as ours."""

    def __init__(self, bundle: Path, artifact: str) -> None:
        super().__init__(api_path="/classify", max_batch_size=16, batch_timeout=0.001)
        self._given = bundle, artifact

    def setup(self, device: str) -> None:
        self.model = Model(*self._given)

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        return list(request["texts"])

    def predict(self, lists: list[list[str]]) -> list[list[dict[str, Any]]]:
        answers = iter(self.model([text for texts in lists for text in texts]))
        return [[next(answers) for _ in texts] for texts in lists]

    def encode_response(self, answers: list[dict[str, Any]]) -> dict[str, Any]:
        return {"answers": answers}


def main() -> None:
    given = parser(__doc__).parse_args()
    api = Edge(given.edge, given.artifact)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=given.port, num_api_servers=1, generate_client_file=False,
               log_level="warning", access_log=False)  # fmt: skip


if __name__ == "__main__":
    main()
