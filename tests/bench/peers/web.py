"""FastAPI as its documentation has it: a model in, a model out; uvicorn, uvloop and httptools."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from tests.bench.peers import PATH

Predict = Callable[[Sequence[str]], list[dict[str, Any]]]


class Asked(BaseModel):
    texts: list[str] = Field(min_length=1, max_length=256)


class Answer(BaseModel):
    label: str
    confidence: float


class Answers(BaseModel):
    answers: list[Answer]


def serve(predict: Predict, port: int, threads: int) -> None:
    """Serves until it is ended.

    Args:
        threads: in which predictions run; 0: on the event loop.
    """
    app = FastAPI()
    pool = ThreadPoolExecutor(threads) if threads else None

    @app.post(PATH)
    async def classify(asked: Asked) -> Answers:
        if pool is None:
            made = predict(asked.texts)
        else:
            made = await asyncio.get_running_loop().run_in_executor(pool, predict, asked.texts)
        return Answers(answers=[Answer(**one) for one in made])

    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False,
                log_level="warning")  # fmt: skip
