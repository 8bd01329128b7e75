"""BentoML: two workers, one for each core, the model on each worker's loop.

Tried on the same cores: one worker gave 0.55 of this, an API that is not async 0.71, adaptive
batching 0.60 (and 27 ms for a message alone).
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

import bentoml

from tests.bench.peers.model import Model, parser

_BUNDLE: Final = "FIRSTLINE_PEER_BUNDLE"
_ARTIFACT: Final = "FIRSTLINE_PEER_ARTIFACT"


@bentoml.service(workers=2, logging={"access": {"enabled": False}})
class Edge:
    """Its workers import this module again, so what it serves comes from the environment."""

    def __init__(self) -> None:
        self.model = Model(Path(os.environ[_BUNDLE]), os.environ[_ARTIFACT])

    @bentoml.api(route="/classify")  # type: ignore[untyped-decorator]
    async def classify(self, texts: list[str]) -> dict[str, Any]:
        return {"answers": self.model(texts)}


def main() -> None:
    given = parser(__doc__).parse_args()
    os.environ.update({_BUNDLE: str(given.edge), _ARTIFACT: given.artifact})
    program = Path(sys.executable).with_name("bentoml")
    command = [str(program), "serve", "tests.bench.peers.bentoml_service:Edge", "--host",
               "127.0.0.1", "--port", str(given.port)]  # fmt: skip
    os.execv(program, command)


if __name__ == "__main__":
    main()
