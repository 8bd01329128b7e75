"""ModelBundle: one folder that holds all that a replica needs, and says what it is.

    model.onnx  tokenizer.json  golden.json  (reports and pictures)  manifest.json

Where `model.onnx` needs a CPU flag to compute what was measured, a second artifact stands beside
it for CPUs without: `model-any.onnx`, with golden rows and a temperature of its own.

The manifest is written last and lists the hash of every other file; a bundle is loaded only if
every hash fits. Its own hash is the bundle's identity. Nothing in it is pickled.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.errors import BundleError
from cluster.files import new_folder, read_json, sha256_file, sha256_json, write_json, write_text

MODEL: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
GOLDEN: Final = "golden.json"
MANIFEST: Final = "manifest.json"
MODEL_ANY: Final = "model-any.onnx"
GOLDEN_ANY: Final = "golden-any.json"
GUARD: Final = "guard.json"  # what the site's guard does otherwise than the built-in one
_VERSIONED: Final = ("firstline", "onnxruntime", "tokenizers", "numpy")

Role = Literal["edge", "cloud"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(_Frozen):
    """A figure is worth nothing without the rows that it was measured on."""

    value: float
    split: str
    rows: int = Field(ge=1)


class DatasetRef(_Frozen):
    """Which data made an artifact: the fingerprint of its rows, and how many per split."""

    fingerprint: str
    rows: dict[str, int]


class GoldenRow(_Frozen):
    """A prepared text and what the finished model said to it, with the temperature applied."""

    text: str = Field(repr=False)
    label: str
    probabilities: tuple[float, ...]
    energy: float
    distance: float
    ngram_margin: float = 0.0  # bundles from before have no such output


class Artifact(_Frozen):
    """One model file of a bundle. `needs` are the CPU flags without which it is another model."""

    model: str
    golden: str
    temperature: float = Field(gt=0)
    needs: tuple[str, ...] = ()


class Manifest(_Frozen):
    """What a bundle says of itself."""

    version: Literal[1] = 1
    role: Role
    labels: tuple[str, ...] = Field(min_length=2)
    temperature: float = Field(gt=0)
    needs: tuple[str, ...] = ()  # of model.onnx
    anywhere: Artifact | None = None
    max_tokens: int = Field(ge=8)
    dataset: DatasetRef
    metrics: dict[str, Metric]
    recipe: dict[str, Any]
    versions: dict[str, str]
    created_at: str
    files: dict[str, str]
    warnings: tuple[str, ...] = ()  # of the gate, which a user has accepted

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> "Manifest":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be distinct")
        return self


@dataclass(frozen=True)
class Finished:
    """A model file with what was measured of it, on its way into a bundle."""

    model: Path
    temperature: float
    golden: Sequence[GoldenRow]


@dataclass(frozen=True)
class ModelBundle:
    """A verified bundle on this machine's disk."""

    path: Path
    manifest: Manifest
    sha256: str

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER

    @property
    def size_bytes(self) -> int:
        """What has to be shipped to run it: model and tokenizer."""
        return self.model_path.stat().st_size + self.tokenizer_path.stat().st_size

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The model files, best first."""
        card = self.manifest
        best = Artifact(model=MODEL, golden=GOLDEN, temperature=card.temperature, needs=card.needs)
        return (best, card.anywhere) if card.anywhere else (best,)

    def artifact(self, cpu_flags: Collection[str]) -> Artifact:
        """The best model file that a CPU with these flags computes as it was measured.

        Raises:
            BundleError: it has none.
        """
        for item in self.artifacts:
            if set(item.needs) <= set(cpu_flags):
                return item
        raise BundleError(
            f"The bundle {self.path} needs a CPU with {', '.join(self.manifest.needs)}; this one "
            f"has {', '.join(sorted(cpu_flags)) or 'no such flag'}. Without it the model would "
            "give other answers. Train on a CPU of this kind, or serve on one of the other."
        )

    def named(self, model: str) -> Artifact:
        """The artifact of this file name.

        Raises:
            BundleError: it has no such one.
        """
        for item in self.artifacts:
            if item.model == model:
                return item
        has = ", ".join(item.model for item in self.artifacts)
        raise BundleError(f"The bundle {self.path} has no artifact {model}; it has {has}.")

    @property
    def guard_sha256(self) -> str | None:
        """Of the guard.json that its training data was masked with; None: the built-in guard."""
        return self.manifest.files.get(GUARD)

    def golden(self, model: str = MODEL) -> list[GoldenRow]:
        """What one of its model files said where it was made.

        Raises:
            BundleError: its rows are those of another version.
        """
        file = self.path / self.named(model).golden
        try:
            return [GoldenRow.model_validate(row) for row in read_json(file)]
        except ValidationError as error:
            raise BundleError(
                f"{file} does not hold the golden messages of this version: {error}\nMake the "
                "bundle again with `firstline train`."
            ) from None


def write_bundle(
    target: Path,
    *,
    role: Role,
    model: Path,
    tokenizer: Path,
    labels: Sequence[str],
    temperature: float,
    max_tokens: int,
    dataset: DatasetRef,
    metrics: Mapping[str, Metric],
    recipe: Mapping[str, Any],
    golden: Sequence[GoldenRow],
    needs: Sequence[str] = (),
    anywhere: Finished | None = None,
    extras: Sequence[Path] = (),
) -> ModelBundle:
    """Writes a bundle whole: `target` appears with its manifest in it, or not at all.

    `extras` are reports and pictures that travel with it. `golden` must come from the same model
    file, so that a replica can prove that it computes what was measured. `needs` are the CPU flags
    without which `model` computes something else, and `anywhere` what to run there.
    """
    with new_folder(target) as folder:
        shutil.copyfile(model, folder / MODEL)
        shutil.copyfile(tokenizer, folder / TOKENIZER)
        write_json(folder / GOLDEN, [row.model_dump(mode="json") for row in golden])
        if anywhere:
            shutil.copyfile(anywhere.model, folder / MODEL_ANY)
            rows = [row.model_dump(mode="json") for row in anywhere.golden]
            write_json(folder / GOLDEN_ANY, rows)
        for extra in extras:
            shutil.copyfile(extra, folder / extra.name)
        manifest = Manifest(
            role=role,
            labels=tuple(labels),
            temperature=temperature,
            needs=tuple(needs),
            anywhere=Artifact(model=MODEL_ANY, golden=GOLDEN_ANY, temperature=anywhere.temperature)
            if anywhere
            else None,
            max_tokens=max_tokens,
            dataset=dataset,
            metrics=dict(metrics),
            recipe=dict(recipe),
            versions={name: version(name) for name in _VERSIONED},
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        )
        # Nobody has accepted anything yet: without the field, a bundle is as it was before it.
        write_json(folder / MANIFEST, manifest.model_dump(mode="json", exclude={"warnings"}))
    return load_bundle(target)


def with_warnings(
    bundle: ModelBundle,
    target: Path,
    warnings: Sequence[str],
    texts: Mapping[str, str] | None = None,
) -> ModelBundle:
    """The same models with warnings in the manifest: another bundle, written whole as `target`.

    Args:
        texts: file name -> what it says now, of files that speak of the warnings too.
    """
    with new_folder(target) as folder:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, folder / name)
        for name, text in (texts or {}).items():
            write_text(folder / name, text)
        said = bundle.manifest.model_dump(mode="json", exclude_unset=True)
        said["warnings"] = list(warnings)
        said["files"] = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, said)
    return load_bundle(target)


def warnings_of(*manifests: Manifest) -> tuple[str, ...]:
    """What the bundles warn of, each sentence once."""
    return tuple(dict.fromkeys(said for manifest in manifests for said in manifest.warnings))


def read_manifest(path: Path) -> Manifest:
    """The manifest alone, its files unchecked.

    Raises:
        BundleError: no manifest, or one that is not ours.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path} is not a finished model bundle: it has no {MANIFEST}, which is written last. "
            "Make one with `firstline train`, or name another folder."
        )
    try:
        return Manifest.model_validate(read_json(file))
    except (ValidationError, ValueError) as error:
        raise BundleError(
            f"{file} is not a bundle manifest that this version reads: {error}"
        ) from None


def load_bundle(path: Path, sha256: str | None = None) -> ModelBundle:
    """Reads a bundle and checks every byte of it.

    Args:
        path: its folder.
        sha256: the identity it must have, if the caller has been promised one.

    Raises:
        BundleError: not a bundle, a file missing, changed or added, or another bundle.
    """
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        file = path / name
        found = sha256_file(file) if file.is_file() else "nothing"
        if found != expected:
            raise BundleError(
                f"The bundle {path} is corrupted: {name} should have SHA-256 {expected[:12]} and "
                f"has {found[:12]}. Fetch it again from the registry, or train it again."
            )
    second = {manifest.anywhere.model, manifest.anywhere.golden} if manifest.anywhere else set()
    if missing := {MODEL, TOKENIZER, GOLDEN, *second} - set(manifest.files):
        raise BundleError(f"The bundle {path} lists no {', '.join(sorted(missing))}.")
    # An ONNX model may name a file beside it for its weights; nothing unhashed may stand there.
    if added := {item.name for item in path.iterdir()} - {*manifest.files, MANIFEST}:
        raise BundleError(
            f"The bundle {path} holds {', '.join(sorted(added))}, which its manifest does not "
            "list. Delete what is not part of it, or fetch it again from the registry."
        )
    # What stands in the file, not what this version would add to it.
    identity = sha256_json(manifest.model_dump(mode="json", exclude_unset=True))
    if sha256 is not None and identity != sha256:
        raise BundleError(
            f"{path} is bundle {identity[:12]}; bundle {sha256[:12]} was expected here."
        )
    return ModelBundle(path, manifest, identity)
