"""``make deploy-demo``: a server, its proxy and three devices on this machine train together; nothing is left running.

``python benchmarks/demo.py [KEY=VALUE ...]`` takes what ``fedgen train`` takes. With DEMO_HOLD=1 in the environment the
page stays open after the training until Ctrl-C. The run is kept where all runs are; the home is removed.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from deployed import Deployment

DEFAULT = ("recipe=tiny", "data.num_owners=3")
"""What is trained if nobody says; what is typed comes after it."""


def main(arguments: Sequence[str]) -> int:
    """Carries the demonstration out; the exit status of the training."""
    chosen = any(word.partition("=")[0] in ("recipe", "data") for word in arguments)
    words = [*(() if chosen else DEFAULT), *arguments]
    clients = names(words)
    hold = os.environ.get("DEMO_HOLD", "0") not in ("", "0")
    _heed_terminate()
    tell(f"starting a server, its proxy and {len(clients)} devices on this machine: {', '.join(clients)}")
    with Deployment(clients, runs=Path(os.environ.get("FEDGEN_RUNS") or "runs")) as there:
        page = there.spawn("dashboard", "dashboard", there.home, "--port", "0")
        try:
            there.until(lambda: "http://" in there.said("dashboard"), "the page is up")
            address = next(word for word in there.said("dashboard").split() if word.startswith("http://"))
            tell(f"all of them are online; look at them: {address}")
            train = there.spawn(
                "train", "train", *words, "federation=superlink", f"federation.home={there.home}", output=1
            )
            try:
                status = train.wait()
            except BaseException:
                # It stops the run on the devices before it ends.
                train.send_signal(signal.SIGINT)
                train.wait()
                raise
            tell("the training is over" if status == 0 else f"the training ended with {status}")
            if hold:
                tell(f"the page stays open until Ctrl-C: {address}")
                threading.Event().wait()
        except KeyboardInterrupt:
            status = 0 if hold and train.returncode == 0 else 130
        finally:
            page.terminate()
            page.wait()
            tell("stopping everything")
    tell("stopped")
    return status


def names(words: Sequence[str]) -> list[str]:
    """Names of the clients of an experiment.

    Raises:
        FedgenError: the words make no experiment, or its data cannot be read.
    """
    from fedgen.cli.train import compose
    from fedgen.config.check import build
    from fedgen.federation.course import shards_of

    experiment = build(compose(words))
    return sorted(shards_of(experiment, experiment.data.load(experiment.seed)))


def tell(text: str) -> None:
    """Says where the demonstration is."""
    print(f"demo: {text}", flush=True)


def _heed_terminate() -> None:
    """SIGTERM ends the demonstration as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


if __name__ == "__main__":
    from fedgen.errors import FedgenError

    try:
        sys.exit(main(sys.argv[1:]))
    except FedgenError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
