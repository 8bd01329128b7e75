"""guard.json: what is harmless on one site, which kinds are looked for, and the site's own words.

    {"harmless_values": ["+49 30 1234567", "12 Harbour Street, Leeds LS1 4QZ"],
     "harmless_domains": ["acme.example"],
     "off": ["birth_date"],
     "words": {"account": ["Kundennummer"], "harmless": ["Vorgangsnummer"]}}

It changes what is trained on and what is certified, so training writes it into both bundles, and a
release pins it by hash. Bundles without one have the built-in guard.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cluster.errors import DataError
from cluster.files import read_json


class PiiKind(StrEnum):
    """What was found; where two findings overlap, the one named first here gives the kind."""

    CARD = "card"
    IBAN = "iban"
    SSN = "ssn"
    IDENTITY = "identity"
    EMAIL = "email"
    ACCOUNT = "account"
    SECRET = "secret"  # noqa: S105 - the name of a kind
    PHONE = "phone"
    ADDRESS = "address"
    BIRTH_DATE = "birth_date"
    NUMBERS = "numbers"  # more digits than are looked at, so each of them counts

    @property
    def placeholder(self) -> str:
        return f"[{self.upper()}]"


_SHORTEST: Final = 5  # letters and digits of a harmless value: a shorter one is part of anything
_DOMAIN: Final = re.compile(r"(?:[\w-]+\.)+[\w-]{2,}")
Word = Annotated[str, Field(min_length=3, max_length=60, pattern=r"\w")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SiteWords(_Frozen):
    """Words before a number, in any case; the number is then of that kind, or nobody's."""

    account: tuple[Word, ...] = ()
    identity: tuple[Word, ...] = ()
    harmless: tuple[Word, ...] = Field((), description="an order's, a case's or a device's number")


class GuardConfig(_Frozen):
    """What one site's guard does otherwise than the built-in one."""

    version: Literal[1] = 1
    harmless_values: tuple[Annotated[str, Field(max_length=200)], ...] = Field(
        (), max_length=200, description="the company's own numbers, mailboxes and addresses"
    )
    harmless_domains: tuple[str, ...] = Field(
        (), max_length=50, description="every mailbox there, and below it"
    )
    off: tuple[PiiKind, ...] = Field((), description="kinds that are not looked for")
    words: SiteWords = SiteWords()

    @field_validator("harmless_values")
    @classmethod
    def _long_enough(cls, found: tuple[str, ...]) -> tuple[str, ...]:
        for value in found:
            if sum(map(str.isalnum, value)) < _SHORTEST:
                raise ValueError(
                    f"{value!r} has fewer than {_SHORTEST} letters and digits, and would hide "
                    "parts of other numbers. Give the whole value"
                )
        return found

    @field_validator("harmless_domains")
    @classmethod
    def _are_domains(cls, found: tuple[str, ...]) -> tuple[str, ...]:
        for domain in found:
            if not _DOMAIN.fullmatch(domain):
                raise ValueError(f"{domain!r} is no domain. Write it as in acme.example")
        return found

    @model_validator(mode="after")
    def _keeps_numbers(self) -> Self:
        if PiiKind.NUMBERS in self.off:
            raise ValueError(
                "'numbers' cannot be off: it stands for what is too much to be looked at, and "
                "might be anything"
            )
        return self


BUILT_IN: Final = GuardConfig()


def read_guard(path: Path) -> GuardConfig:
    """A guard.json that a user wrote.

    Raises:
        DataError: it is not there, no JSON, or holds what no guard has.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}. Give a guard.json, or leave --guard out.")
    try:
        return GuardConfig.model_validate(read_json(path))
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}"
            for item in error.errors()
        )
        raise DataError(
            f"{path} is not a guard.json: {said}. It may have {', '.join(GuardConfig.model_fields)}"
            " (docs/guard.md)."
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from None


def guard_config(raw: Mapping[str, Any] | None) -> GuardConfig:
    """Of a release's raw JSON; None, of releases that pin none, is the built-in guard."""
    return BUILT_IN if raw is None else GuardConfig.model_validate(raw)
