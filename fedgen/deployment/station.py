"""What ``fedgen server`` and ``fedgen client`` have in common: one at a time, a log, and signals."""

import contextlib
import fcntl
import logging
import logging.handlers
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from fedgen import disk
from fedgen.deployment.children import KEPT_LOGS, LOG_BYTES
from fedgen.errors import ConfigError

STEP_S = 0.5


@contextlib.contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Holds a lock that ends with this process, however it ends.

    Args:
        path: the lock's file.
        what: for the message, "a server of this home" say.

    Raises:
        ConfigError: another process holds it.
        RunError: the file cannot be made.
    """
    with disk.writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(f"{what} is running already ({path} is locked). Stop it first") from error
    try:
        yield
    finally:
        os.close(descriptor)


def teller(path: Path) -> logging.Logger:
    """A log that says everything twice: on stderr, and in a file that is rotated."""
    log = logging.Logger(path.stem)
    form = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    form.converter = time.gmtime
    with disk.writing(path):
        file = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=KEPT_LOGS)
    for handler in (logging.StreamHandler(sys.stderr), file):
        handler.setFormatter(form)
        log.addHandler(handler)
    return log


def until_told(step: Callable[[], None]) -> None:
    """Calls something twice a second until SIGTERM, SIGINT or SIGHUP comes; the handlers are then as they were."""
    stop = threading.Event()

    def told(number: int, frame: FrameType | None) -> None:
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, told) for number in signals}
    try:
        while not stop.is_set():
            step()
            stop.wait(STEP_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
