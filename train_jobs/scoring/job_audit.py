"""The answers of a service's job -> the audit log, before the part that holds them is whole.

Whoever scores files of their own has the folder as the record; what a service answers is accounted
for. A row that is scored twice after a kill is written twice with one id, and so counted once.
"""

import os
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from cluster.audit.keyed_hash import TextHasher, load_key
from cluster.audit.records import AuditRecord
from cluster.audit.write import AuditLog
from cluster.releases import Release
from cluster.settings import Settings
from serve_app.cascade.work import RecordBuilder, Work
from serve_app.decide.cost import Prices
from serve_app.decide.policy import policy_of


class JobAudit:
    """Writes down what a release said of a file's rows.

    Args:
        out: the folder of the scores, which tells the rows of one job from those of another.
    """

    def __init__(self, settings: Settings, release: Release, out: Path) -> None:
        hasher = TextHasher(load_key(settings.home / "audit.key", settings.audit_key))
        self._record_builder = RecordBuilder.of(policy_of(release), hasher, time.time, offline=True)
        self._log = AuditLog(settings.audit_dir, f"score-{os.getpid()}")
        self._release, self._out = release.id, out
        self._prices = Prices.model_validate(release.prices)

    def write(self, file: str, answered: Sequence[tuple[int, Work]]) -> None:
        """(row number, its work) of one file.

        Raises:
            AuditError: they cannot be written, so the part must not be.
        """
        self._log.append([self._record(file, row, work) for row, work in answered])

    def _record(self, file: str, row: int, work: Work) -> AuditRecord:
        name = f"{self._out}\0{file}\0{row}".encode()
        answer_id = blake2b(name, digest_size=16).hexdigest()
        answered = work.answered(answer_id, self._release, self._prices, None)
        return self._record_builder.record(work, answered)
