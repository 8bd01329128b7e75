"""Tensors of the Open Inference Protocol v2 -> texts, and answers -> tensors. No HTTP.

    body ─> read() ─> Asked ─> service ─> write() ─> JSON part, bytes after it

A tensor is JSON, or bytes after the JSON: the binary tensor data extension, as tritonclient sends.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.contracts import Caller
from serve_app.decide.answered import Answered
from serve_app.errors import RefusedError
from serve_app.http.errors import CODES
from serve_app.http.models import ClassifyIn, null_is_absent
from serve_app.request_limits import MAX_DEADLINE_MS, MAX_TEXTS

MODEL: Final = "firstline"
INPUT: Final = "text"
HEADER_BYTES: Final = "Inference-Header-Content-Length"
_DATATYPES: Final = frozenset(
    {"BOOL", "BYTES"}
    | {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
    | {"FP16", "BF16", "FP32", "FP64"}
)
_MAX_PROBLEMS: Final = 10
_MAX_ITEMS: Final = 16  # of inputs, outputs and dimensions that are read at all


# ---- bodies -------------------------------------------------------------------------------------


class _In(BaseModel):
    # Extra keys are the protocol's own way to extend it; its examples carry some.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class InputParameters(_In):
    binary_data_size: int | None = Field(None, ge=0, description="bytes of it after the JSON")
    shared_memory_region: str | None = Field(None, description="refused", repr=False)


class InputTensor(_In):
    name: str = Field(repr=False, examples=[INPUT])
    shape: list[int] = Field(
        max_length=_MAX_ITEMS, description="[n] or [n, 1], n texts", examples=[[1]]
    )
    datatype: str = Field(repr=False, examples=["BYTES"])
    parameters: Annotated[InputParameters, null_is_absent(InputParameters)] = InputParameters()
    data: list[str | list[str]] | None = Field(
        None,
        max_length=MAX_TEXTS,
        repr=False,
        description="flat, or nested as the shape says; absent when binary",
    )


class OutputParameters(_In):
    binary_data: bool | None = Field(None, description="as bytes after the JSON")
    classification: int | None = Field(None, description="refused")
    shared_memory_region: str | None = Field(None, description="refused", repr=False)


class OutputWanted(_In):
    name: str = Field(repr=False, examples=["label"])
    parameters: Annotated[OutputParameters, null_is_absent(OutputParameters)] = OutputParameters()


_Wanted = Annotated[list[OutputWanted], Field(max_length=_MAX_ITEMS)]


class InferParameters(_In):
    binary_data_output: Annotated[bool, null_is_absent(bool)] = Field(
        False, description="all outputs as bytes after the JSON"
    )
    user_id: str | None = Field(None, repr=False, description="as in /v1/classify")
    timeout: int | None = Field(None, gt=0, description="how long the caller waits, microseconds")


class InferIn(_In):
    id: str | None = Field(None, max_length=256, repr=False, description="returned as it came")
    parameters: Annotated[InferParameters, null_is_absent(InferParameters)] = InferParameters()
    inputs: list[InputTensor] = Field(
        max_length=_MAX_ITEMS, description=f"one, named {INPUT!r}, of BYTES"
    )
    outputs: Annotated[_Wanted, null_is_absent(_Wanted)] = Field([], description="absent: all")


class Out(BaseModel):
    """What leaves, for the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OutputTensor(Out):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = Field(None, description="`binary_data_size`, when binary")
    data: list[str | float | bool] | None = Field(None, description="absent when binary")


class InferOut(Out):
    # model_name and model_version are the protocol's names, not pydantic's.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_name: str
    model_version: str | None = Field(None, description="absent when several releases answered")
    id: str | None = Field(None, description="of the request, if it had one")
    outputs: list[OutputTensor]


def refuse(message: str, status: int = 422) -> NoReturn:
    """Raises RefusedError."""
    raise RefusedError(status, CODES[status], message) from None


# ---- bytes -> what is asked ---------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request in our terms. `outputs` are names, each with whether it leaves as bytes."""

    texts: Sequence[str] = field(repr=False)
    shape: Sequence[int]
    outputs: Mapping[str, bool]
    id: str | None = field(default=None, repr=False)
    user: str | None = field(default=None, repr=False)
    timeout_s: float | None = None

    def by(self, caller: Caller) -> Caller:
        """The caller of the HTTP request, with the user and the deadline that the body names."""
        waits_s = [wait for wait in (caller.deadline_s, self.timeout_s) if wait is not None]
        return replace(
            caller,
            user=caller.user if self.user is None else self.user,
            deadline_s=min(waits_s, default=None),
        )


def read(body: bytes, header_bytes: str | None) -> Asked:
    """The body, and the length of its JSON part if it is not the whole -> what is asked.

    Raises:
        RefusedError: it does not fit; with what was found and what was expected.
    """
    head, tail = _split(body, header_bytes)
    try:
        asked = InferIn.model_validate_json(head)
    except ValidationError as error:
        _refuse_unfit(error)
    shape, texts = _tensor(asked.inputs, tail)
    parameters = asked.parameters
    limited = _within_limits(texts, parameters.user_id)
    return Asked(
        texts=limited.texts,
        shape=shape,
        outputs=_wanted(asked.outputs, parameters.binary_data_output),
        id=asked.id,
        user=limited.user_id,
        timeout_s=_seconds(parameters.timeout),
    )


def _seconds(timeout_us: int | None) -> float | None:
    return None if timeout_us is None else min(timeout_us / 1e6, MAX_DEADLINE_MS / 1e3)


def _split(body: bytes, header_bytes: str | None) -> tuple[bytes, bytes]:
    if header_bytes is None:
        return body, b""
    if not (header_bytes.isascii() and header_bytes.isdigit() and len(header_bytes) < 20):
        refuse(f"{HEADER_BYTES} is not a number of bytes.", 400)
    if (size := int(header_bytes)) > len(body):
        refuse(f"{HEADER_BYTES} is {size}, but the body has {len(body)} bytes.", 400)
    return body[:size], body[size:]


def _refuse_unfit(error: ValidationError) -> NoReturn:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        refuse(
            "The body is not JSON in UTF-8. With binary tensors, "
            f"{HEADER_BYTES} says how long its JSON part is.",
            400,
        )
    shown = "; ".join(
        f"{_where(problem['loc'])}: {problem['msg']}" for problem in problems[:_MAX_PROBLEMS]
    )
    refuse(f"The request does not fit: {shown}. /docs shows every field.")


def _where(loc: Sequence[int | str]) -> str:
    """A location such as `inputs[0].shape`; all names in it are fields of ours."""
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(steps).lstrip(".") or "body"


def _tensor(inputs: Sequence[InputTensor], tail: bytes) -> tuple[Sequence[int], list[str]]:
    """The one input's shape and its texts."""
    if len(inputs) != 1:
        refuse(f"There are {len(inputs)} inputs; expected one, named {INPUT!r}.")
    tensor = inputs[0]
    if tensor.name != INPUT:
        refuse(f"inputs[0].name is another than {INPUT!r}, the one input there is.")
    if tensor.datatype != "BYTES":
        found = tensor.datatype if tensor.datatype in _DATATYPES else "none of the protocol's"
        refuse(f"inputs[0].datatype is {found}; expected BYTES, one UTF-8 text per element.")
    count = _count(tensor.shape)
    texts = _elements(tensor, count, tail)
    if len(texts) != count:
        refuse(f"inputs[0] has {len(texts)} elements, but its shape says {count}.")
    return tensor.shape, texts


def _count(shape: Sequence[int]) -> int:
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or not 1 <= shape[0] <= MAX_TEXTS:
        found = shape if len(shape) <= 4 else f"one of {len(shape)} dimensions"
        refuse(f"inputs[0].shape is {found}; expected [n] or [n, 1], n from 1 to {MAX_TEXTS}.")
    return shape[0]


def _elements(tensor: InputTensor, count: int, tail: bytes) -> list[str]:
    size = tensor.parameters.binary_data_size
    if tensor.parameters.shared_memory_region is not None:
        refuse("inputs[0] is in shared memory, which this service does not read. Send its data.")
    if (tensor.data is None) == (size is None):
        refuse("inputs[0] needs either data, or parameters.binary_data_size and bytes after it.")
    if len(tail) != (size or 0):
        refuse(f"{len(tail)} bytes follow the JSON, but inputs[0] declares {size or 0}.")
    return _decoded(tail, count) if tensor.data is None else _flat(tensor.data)


def _flat(data: Sequence[str | list[str]]) -> list[str]:
    return [text for row in data for text in ([row] if isinstance(row, str) else row)]


def _decoded(tail: bytes, count: int) -> list[str]:
    """BYTES elements, each after its length in four bytes; one more than `count` at most."""
    texts: list[str] = []
    start = 0
    while start < len(tail) and len(texts) <= count:
        end = start + 4 + int.from_bytes(tail[start : start + 4], "little")
        if start + 4 > len(tail) or end > len(tail):
            refuse(f"Element {len(texts)} of inputs[0] is longer than the bytes that came.")
        try:
            texts.append(tail[start + 4 : end].decode())
        except UnicodeDecodeError:
            refuse(f"Element {len(texts)} of inputs[0] is not UTF-8. Encode texts as UTF-8.")
        start = end
    return texts


def _within_limits(texts: list[str], user_id: str | None) -> ClassifyIn:
    """The same, judged by the very model that /v1/classify judges them by."""
    try:
        return ClassifyIn(texts=texts, user_id=user_id)
    except ValidationError as error:
        _refuse_unfit(error)


def _wanted(outputs: Sequence[OutputWanted], binary: bool) -> Mapping[str, bool]:
    names = [output.name for output in outputs]
    if unknown := [at for at, name in enumerate(names) if name not in OUTPUTS]:
        refuse(f"outputs[{unknown[0]}] is none of the outputs: {', '.join(OUTPUTS)}.")
    if len(set(names)) < len(names):
        refuse("The same output is asked for twice. Name each once.")
    if any(o.parameters.classification or o.parameters.shared_memory_region for o in outputs):
        refuse("Outputs leave as JSON or as bytes; neither as classes nor into shared memory.")
    chosen = {
        output.name: binary if (own := output.parameters.binary_data) is None else own
        for output in outputs
    }
    return chosen or dict.fromkeys(OUTPUTS, binary)


# ---- answers -> bytes ---------------------------------------------------------------------------


def _packed_bytes(values: Sequence[str]) -> bytes:
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)


def _packed_fp32(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


_PACKED: Final[Mapping[str, Callable[[Sequence[Any]], bytes]]] = {
    "BYTES": _packed_bytes,
    "FP32": _packed_fp32,
    "BOOL": bytes,
}
OUTPUTS: Final[Mapping[str, tuple[str, Callable[[Answered], Any]]]] = {
    "label": ("BYTES", lambda answered: str(answered.label)),
    "confidence": ("FP32", lambda answered: answered.confidence),
    "route": ("BYTES", lambda answered: answered.route.value),
    "reason": ("BYTES", lambda answered: answered.reason.value),
    "id": ("BYTES", lambda answered: answered.id),
    "release": ("BYTES", lambda answered: answered.release),
    "degraded": ("BOOL", lambda answered: answered.degraded),
}


def write(asked: Asked, answered: Sequence[Answered]) -> tuple[bytes, bytes]:
    """The JSON part of the response, and the bytes after it."""
    outputs: list[dict[str, Any]] = []
    packed: list[bytes] = []
    for name, binary in asked.outputs.items():
        datatype, value_of = OUTPUTS[name]
        values = [value_of(one) for one in answered]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(asked.shape)}
        if binary:
            packed.append(_PACKED[datatype](values))
            output["parameters"] = {"binary_data_size": len(packed[-1])}
        else:
            output["data"] = values
        outputs.append(output)
    head = _head(asked, answered) | {"outputs": outputs}
    return json.dumps(head, ensure_ascii=False, allow_nan=False).encode(), b"".join(packed)


def _head(asked: Asked, answered: Sequence[Answered]) -> dict[str, Any]:
    releases = {one.release for one in answered}
    version = {"model_version": releases.pop()} if len(releases) == 1 else {}
    given = {} if asked.id is None else {"id": asked.id}
    return {"model_name": MODEL, **version, **given}
