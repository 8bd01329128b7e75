"""Environment (FIRSTLINE_*) -> frozen Settings. Read by `load_settings()`, never at import."""

import difflib
import os
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cluster.errors import ConfigError

PREFIX = "FIRSTLINE_"
# Ray unpacks a job's working_dir below a folder of this name; it is thrown away with the job.
_JOB_FOLDER = "runtime_resources"


class Settings(BaseSettings):
    """What every process must agree on. Each field is FIRSTLINE_<NAME> in the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(Path(".firstline"), description="where artifacts, releases and audit live")
    seed: int = Field(0, ge=0, description="the seed of every stage")
    ray_address: str = Field("", description="an existing cluster; empty: RAY_ADDRESS or local")
    audit_key: SecretStr = Field(
        SecretStr(""), description="key of the text hash in the audit log; empty: made and kept"
    )

    redis_url: SecretStr = Field(
        SecretStr(""), description="what several routers share; empty: each counts for itself"
    )
    api_keys: SecretStr = Field(
        SecretStr(""), description="hashed API keys as JSON, beside those of keys.json"
    )
    api_key: SecretStr = Field(SecretStr(""), description="what our own client shows a service")

    @property
    def bundles_dir(self) -> Path:
        return self.home / "bundles"

    @property
    def releases_dir(self) -> Path:
        return self.home / "releases"

    @property
    def audit_dir(self) -> Path:
        return self.home / "audit"

    @property
    def tracking_uri(self) -> str:
        """The MLflow server, or the embedded SQLite file."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home / 'mlflow.db'}"

    def worker_env(self) -> dict[str, str]:
        """The environment that a Ray worker needs to load the same Settings."""
        env = {f"{PREFIX}HOME": str(self.home), f"{PREFIX}SEED": str(self.seed)}
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            env["MLFLOW_TRACKING_URI"] = uri
        return env


def load_settings(home: Path | None = None) -> Settings:
    """Reads the environment.

    Raises:
        ConfigError: an unknown FIRSTLINE_ variable, or a value of the wrong type.
    """
    known = sorted(name.upper() for name in Settings.model_fields)
    shown = ", ".join(f"{PREFIX}{name}" for name in known)
    for variable in os.environ:
        name = variable.removeprefix(PREFIX)
        if variable.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {PREFIX}{near[0]}?" if near else f"Known: {shown}."
            raise ConfigError(
                f"The environment has {variable}, which Firstline does not know. {hint}"
            )
    try:
        settings = Settings() if home is None else Settings(home=home)
    except ValidationError as error:
        found = "; ".join(
            f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}, found {e['input']!r}"
            for e in error.errors()
        )
        raise ConfigError(f"The environment cannot be used: {found}") from None
    root = settings.home.expanduser().absolute()
    if _JOB_FOLDER in root.parts:
        raise ConfigError(
            f"Results would be written to {root}, a folder that Ray deletes with the job. Set "
            f"{PREFIX}HOME to a folder that lasts, in the job's runtime_env or on the cluster."
        )
    return settings.model_copy(update={"home": root})
