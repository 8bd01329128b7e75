"""FastAPI + ONNX Runtime in one process: what most teams would write first, and write well."""

from tests.bench.peers.model import Model, parser
from tests.bench.peers.web import serve


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--threads", type=int, default=0, help="0: on the event loop")
    arguments = made.parse_args()
    serve(Model(arguments.edge, arguments.artifact), arguments.port, arguments.threads)


if __name__ == "__main__":
    main()
