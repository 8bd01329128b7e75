"""The exception tree. Every message says what was found, what was expected and what to do.

FirstlineError
├── ConfigError      a setting or an option is wrong
├── DataError        a data file cannot be used
├── BundleError      a model bundle is broken, or does not fit
├── TrainingError    a training job failed on its worker
├── ModelOutputError a model answered with NaN or infinity
├── GateError        a bundle was refused by the gate
├── CertifyError     a wanted risk cannot be certified
├── ReleaseError     a release is broken, unknown, or mixes parts that do not belong together
├── RegistryError    the registry does not answer, or cannot be read
├── AuditError       a decision could not be written down, so the answer must not leave
└── ServiceError     the service cannot be started or reached
"""


class FirstlineError(Exception):
    """An error a user can act on; the command line prints it as a paragraph, exit code 2."""


class ConfigError(FirstlineError):
    """A setting or an option is wrong."""


class DataError(FirstlineError):
    """A data file cannot be used."""


class BundleError(FirstlineError):
    """A model bundle is broken, or does not fit."""


class TrainingError(FirstlineError):
    """A training job failed on its worker."""


class ModelOutputError(FirstlineError):
    """A model answered with NaN or infinity."""


class GateError(FirstlineError):
    """A bundle was refused by the gate."""


class CertifyError(FirstlineError):
    """A wanted risk cannot be certified."""


class ReleaseError(FirstlineError):
    """A release is broken, unknown, or mixes parts that do not belong together."""


class RegistryError(FirstlineError):
    """The registry does not answer, or cannot be read."""


class AuditError(FirstlineError):
    """A decision could not be written down, so the answer must not leave."""


class ServiceError(FirstlineError):
    """The service cannot be started or reached."""
