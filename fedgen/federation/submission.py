"""A run under Flower, from its submission to its end, as the process sees it that waits for it."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import fedgen
from fedgen.disk import writing
from fedgen.errors import RunError
from fedgen.federation import run_config
from fedgen.federation.shield import Control
from fedgen.journal import read
from fedgen.records import warning
from fedgen.run import Run
from fedgen.types import Observer, Record

LOOK_S = 0.1
"""Between two looks at what the run tells."""

ASK_S, LONGEST_ASK_S = 10.0, 60.0
"""A run that tells nothing for so long is asked after, then less and less often: to ask takes seconds of a core."""

BUNDLE = """\
[project]
name = "fedgen-run"
version = "{version}"
description = "Names the apps; their code is that of the fedgen that each machine has installed."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedgen"

[tool.flwr.app.components]
serverapp = "fedgen.federation.server_app:app"
clientapp = "fedgen.federation.client_app:app"

[tool.flwr.app.config]
{keys}
"""


class Vanished(Exception):
    """The server's part of a run has ended without a word."""


@dataclass(frozen=True)
class Submission:
    """Submits a run, and follows it.

    Attributes:
        control: where to.
        folder: of the run.
        observe: is told of each thing as it happens.
        clients: names of all clients.
        federation: of a simulation, how large it is.
    """

    control: Control
    folder: Run
    observe: Observer
    clients: Sequence[str]
    federation: Mapping[str, int | float | bool]

    def submit(self) -> str:
        """Starts the run; returns Flower's number of it.

        Raises:
            RunError: Flower refuses it, or cannot be reached.
        """
        config = run_config.write(run_config.resolved(self.folder.experiment_file), self.folder.path, self.clients)
        with tempfile.TemporaryDirectory(prefix="fedgen-") as temporary:
            bundle, overrides = Path(temporary, "bundle"), Path(temporary, "run.toml")
            bundle.mkdir()
            keys = "\n".join(f'"{key}" = ""' for key in run_config.KEYS)
            (bundle / "pyproject.toml").write_text(BUNDLE.format(version=fedgen.__version__, keys=keys))
            overrides.write_text(toml_of(config), encoding="utf-8")
            return self.control.submit(bundle, overrides, self.federation)

    def follow(self, run_id: str, tail: "Tail", check: Callable[[], None]) -> None:
        """Hands on what the run tells until it is over.

        Args:
            run_id: Flower's number of it.
            tail: reads what it tells.
            check: raises if whatever the run needs on this machine is gone.

        Raises:
            RunError: the run has failed, or was stopped.
            Vanished: it has ended without a word.
        """
        due, wait_s, gone = time.monotonic() + ASK_S, ASK_S, ""
        while True:
            for record in tail.new():
                due, wait_s = time.monotonic() + ASK_S, ASK_S
                if self._last(record):
                    return
            if gone:
                raise Vanished(gone)
            check()
            if time.monotonic() > due:
                wait_s = min(2 * wait_s, LONGEST_ASK_S)
                gone = self._gone(run_id)
                due = time.monotonic() + wait_s
            time.sleep(LOOK_S)

    def _last(self, record: Record) -> bool:
        if record.get("kind") == "failed":
            raise RunError(str(record.get("message", "the run has failed")))
        if record.get("kind") == "over":
            return True
        self.observe(record)
        return False

    def _gone(self, run_id: str) -> str:
        """How a run has ended, in Flower's words; empty if it has not, or if Flower cannot be asked now."""
        try:
            status, details = self.control.status(run_id)
        except RunError as error:
            self.observe(warning(0, f"Flower does not answer; the run may go on all the same: {error}"))
            return ""
        if status == "finished:stopped":
            raise RunError("the run was stopped")
        return f"{status} {details}".strip() if status.startswith("finished") else ""


@final
class Tail:
    """Reads the lines that are added to a file.

    Args:
        path: the file; made if there is none.
        again: begins with the newest `start` of a run; if false, with what is added from now on.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        with writing(path):
            path.touch()
            content = path.read_bytes()
        start = content.rfind(b'{"kind": "start"') if again else -1
        self._path, self._place = path, len(content) if start < 0 else start

    def new(self) -> Iterator[Record]:
        """What has been added since the last time; a line that is not complete yet waits, one that is damaged is lost.

        Raises:
            RunError: the file cannot be read.
        """
        with writing(self._path), self._path.open("rb") as file:
            file.seek(self._place)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def toml_of(texts: Mapping[str, str]) -> str:
    """Named texts as toml.

    >>> print(toml_of({"a.b": "c"}), end="")
    "a.b" = "c"
    """
    # A text of JSON is one of toml as well, but for pairs of surrogates and for the one control character that JSON
    # leaves as it is.
    lines = (f'"{key}" = {json.dumps(value, ensure_ascii=False)}\n' for key, value in texts.items())
    return "".join(lines).replace("\x7f", "\\u007f")


def is_over(run: Run) -> bool:
    """Whether a run has come to its end, so that nothing is left to do.

    Raises:
        RunError: its journal cannot be read.
    """
    return any(line["kind"] == "end" for line in read(run.metrics_file))
