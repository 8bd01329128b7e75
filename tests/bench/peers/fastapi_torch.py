"""FastAPI + torch: the student before it was compressed, fp32, as Transformers loads it.

Two threads with one torch thread each: with one message at a time, two torch threads inside a
message are slower than two messages side by side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.bench.peers.model import answer, parser
from tests.bench.peers.web import serve


class Student:
    """`student(texts)` -> labels and confidences; one padded batch for the texts of a request."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        names = self.model.config.id2label
        self.labels = [str(names[index]) for index in range(len(names))]

    def __call__(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        feed = self.tokenizer(list(texts), padding=True, truncation=True, max_length=256,
                              return_tensors="pt")  # fmt: skip
        with torch.inference_mode():
            logits = self.model(**feed).logits.numpy()
        return [answer(row, self.labels, 1.0) for row in logits]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--student", type=Path, required=True, help="its Hugging Face folder")
    arguments = made.parse_args()
    serve(Student(arguments.student), arguments.port, threads=2)


if __name__ == "__main__":
    main()
