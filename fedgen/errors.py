"""What can go wrong, as a tree. Each message says what was got, what was expected and what to do.

::

    FedgenError
    ├── ConfigError      the configuration is wrong (also a ValueError)
    ├── DataError        examples are missing, malformed or empty
    ├── ModelError       a model cannot be found, loaded or used
    ├── RunError         a run folder cannot be written, read or continued
    └── ClientError      one client's work is unusable; the run goes on without it

The command line prints any ``FedgenError`` as one message and exits with 2. A ``ValueError`` from a constructor
becomes a ``ConfigError`` there; an ``assert`` that fails is a defect of fedgen.
"""


class FedgenError(Exception):
    """Root of every error that is meant for the user."""


class ConfigError(FedgenError, ValueError):
    """The configuration is wrong; raised before anything is built."""


class DataError(FedgenError):
    """Examples are missing, malformed or empty."""


class ModelError(FedgenError):
    """A model cannot be found, loaded or used."""


class RunError(FedgenError):
    """A run folder cannot be written, read or continued."""


class ClientError(FedgenError):
    """One client's work is unusable. It is refused and counted; the run goes on.

    ``reason`` is one of a few fixed words, so that refusals can be counted and no data of the client leaves with it.
    """

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason
