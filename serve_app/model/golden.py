"""TierModel: a bundle -> a model that answers only after it reproduced its golden messages.

Pure half of serve_app: a replica (serve_app/tiers/replica.py), the command line
(serve_app/cascade/local.py) and offline scoring (train_jobs/scoring/score.py) all answer with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.bundles import MODEL, GoldenRow, ModelBundle, load_bundle
from cluster.errors import BundleError, ModelOutputError
from serve_app.contracts import Prediction
from serve_app.model.classifier import OnnxClassifier
from serve_app.model.cpu import cpu_flags


@dataclass(frozen=True)
class TierModel:
    """A bundle that has proved, on this machine, that it computes what was measured."""

    classifier: OnnxClassifier
    golden: tuple[GoldenRow, ...]

    @classmethod
    def load(cls, path: Path, sha256: str, threads: int, artifact: str = MODEL) -> "TierModel":
        """Args: artifact: the model file of the bundle that the release was certified with.

        Raises:
            BundleError: a byte or a golden answer differs, there are none to compare, or this CPU
                runs another artifact.
        """
        bundle = load_bundle(path, sha256)
        _check_artifact(bundle, artifact)
        golden = tuple(bundle.golden(artifact))
        if not golden:
            raise BundleError(
                f"The bundle {path} has no golden messages, so a replica cannot prove that it "
                "computes what was measured. Make it again with `firstline train`."
            )
        model = cls(OnnxClassifier.of(bundle, threads, artifact), golden)
        model.classifier.check_golden(golden)  # and warms the session up
        return model

    def predict(self, texts: Sequence[str]) -> list[Prediction | None]:
        """One entry per text; None where the model had no finite answer.

        After a list in which one message is poisoned, each is asked alone.
        """
        try:
            return list(self.classifier.predict(texts))
        except ModelOutputError:
            return [self._one(text) for text in texts]

    def _one(self, text: str) -> Prediction | None:
        try:
            return self.classifier.predict([text])[0]
        except ModelOutputError:
            return None

    def check(self) -> None:
        """Raises BundleError if the first golden message no longer comes out as it did."""
        self.classifier.check_golden(self.golden[:1])


def _check_artifact(bundle: ModelBundle, certified: str) -> None:
    """Raises BundleError unless this CPU computes the certified artifact as it was measured."""
    flags = cpu_flags()
    if missing := set(bundle.named(certified).needs) - flags:
        raise BundleError(
            f"The release was certified with {certified} of the bundle {bundle.path}, which needs "
            f"a CPU with {', '.join(sorted(missing))}; this one has "
            f"{', '.join(sorted(flags)) or 'no such flag'} and would run another artifact. A "
            "policy runs only with the model that it was certified for: run `firstline tune` on a "
            "machine of the kind that serves, or on the oldest of them."
        )
