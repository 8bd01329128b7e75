"""The published router: both models for every message, padded to 256 tokens, one FastAPI process.

Its edge model is dynamic int8 of the whole cloud model, its cloud model fp32; the edge's label goes
out where the edge is confident, the cloud's elsewhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.peers.model import Model, parser
from tests.bench.peers.web import serve

PADDED: Final = 256
_CONFIDENT: Final = 0.85


class Router:
    """`router(texts)` -> the edge's answer where it is confident, else the cloud's."""

    def __init__(self, cloud: Path, int8: Path) -> None:
        self._edge = Model(cloud, str(int8.absolute()), PADDED)
        self._cloud = Model(cloud, "model.onnx", PADDED)

    def __call__(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        pairs = zip(self._edge(texts), self._cloud(texts), strict=True)
        return [near if near["confidence"] >= _CONFIDENT else far for near, far in pairs]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--cloud", type=Path, required=True, help="the cloud bundle")
    made.add_argument("--int8", type=Path, required=True, help="its model in dynamic int8")
    arguments = made.parse_args()
    serve(Router(arguments.cloud, arguments.int8), arguments.port, threads=2)


if __name__ == "__main__":
    main()
