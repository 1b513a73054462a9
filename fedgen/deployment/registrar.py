"""Makes the SuperLink know the devices of `fleet.json`: registers keys that are new, takes those out that are gone.

`fleet.json` is the truth. The SuperLink's own list names neither devices nor keys, so `state/nodes.json` keeps which
key was registered as which node. A key that was taken out can never be registered again: a device that comes back gets
another (``provision`` sees to that), and a node that this file does not know is left alone.

    {"format": 1, "nodes": {"NAME": {"node_id": "...", "public_key": "..."}}}

Flower's command is called in this process, once per device: a process for each would take seconds.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

from fedgen.deployment.files import read_object, write_object
from fedgen.deployment.home import CONNECTION, Home
from fedgen.errors import ConfigError, RunError

IN_USE = "[code: 23]"
"""What Flower says of a key that is registered, or was."""

UNREACHED = 75
"""Exit status when the SuperLink does not answer (yet); EX_TEMPFAIL of sysexits.h."""


@final
@dataclass(frozen=True)
class Node:
    """A device as the SuperLink knows it.

    Attributes:
        node_id: its number.
        public_key: under which it was registered.
    """

    node_id: str
    public_key: str


def read_nodes(home: Home) -> dict[str, Node]:
    """Which devices are registered as which nodes; empty before the server's first start.

    Raises:
        ConfigError: the file is damaged.
    """
    path = home.state / "nodes.json"
    if not path.exists():
        return {}
    nodes = {}
    for name, entry in read_object(path, {"nodes": dict})["nodes"].items():
        node_id, key = (entry.get("node_id"), entry.get("public_key")) if isinstance(entry, dict) else (None, None)
        if not isinstance(node_id, str) or not node_id.isdecimal() or not isinstance(key, str):
            raise ConfigError(f"{path} is damaged: node {name}. Remove it: all keys will be registered again")
        nodes[name] = Node(node_id, key)
    return nodes


def register(home: Home) -> tuple[list[str], list[str]]:
    """Brings the SuperLink's list in line with `fleet.json`.

    Returns:
        Names of devices that were registered, and names of those that were taken out.

    Raises:
        RunError: the SuperLink does not answer, or refuses.
    """
    listed = {str(node.get("node-id")): str(node.get("status")) for node in flwr("supernode", "list")["nodes"]}
    live = {node_id for node_id, status in listed.items() if status != "unregistered"}
    nodes = read_nodes(home)
    wanted = {
        name: node
        for name, node in nodes.items()
        if node.node_id in live and name in home.devices and home.devices[name].public_key == node.public_key
    }
    removed = [name for name, node in nodes.items() if node.node_id in live and name not in wanted]
    for name in removed:
        flwr("supernode", "unregister", nodes[name].node_id)
    added = [name for name in home.devices if name not in wanted]
    strangers = live - {node.node_id for node in nodes.values()}
    for name in added:
        wanted[name] = _register(name, home.devices[name].public_key, strangers)
        _write(home, wanted)
    _write(home, wanted)
    return added, removed


def flwr(*arguments: str) -> dict[str, Any]:
    """What one of Flower's commands says about the SuperLink of a home, whose `flwr` folder is FLWR_HOME.

    Raises:
        RunError: the SuperLink does not answer, or refuses.
    """
    [command] = importlib.metadata.entry_points(group="console_scripts", name="flwr")
    entry = command.load()
    with tempfile.TemporaryFile("w+") as said:
        with _called(["flwr", *arguments, CONNECTION, "--format", "json"], said), contextlib.suppress(SystemExit):
            entry()
        said.seek(0)
        text = said.read()
    try:
        answer = json.loads(text[text.index("{") :])
    except ValueError as error:
        raise RunError(f"flwr {' '.join(arguments)}: {text.strip()[-400:] or 'no answer'}") from error
    if answer.get("success") is not True:
        raise RunError(f"flwr {' '.join(arguments)}: {str(answer.get('error-message', text)).strip()[-400:]}")
    return dict(answer)


def _register(name: str, public_key: str, strangers: set[str]) -> Node:
    """Registers a key under the name of its device, so that nobody can claim another's.

    If it is registered, and a crash kept us from noting that, it is the one node left over.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "node.pub"
        path.write_text(public_key + "\n")
        try:
            return Node(str(flwr("supernode", "register", "--name", name, str(path))["node-id"]), public_key)
        except RunError as error:
            if IN_USE not in str(error) or len(strangers) != 1:
                raise
            return Node(strangers.pop(), public_key)


def _write(home: Home, nodes: Mapping[str, Node]) -> None:
    write_object(home.state / "nodes.json", {"nodes": {name: dataclasses.asdict(node) for name, node in nodes.items()}})


@contextlib.contextmanager
def _called(arguments: Sequence[str], said: IO[str]) -> Iterator[None]:
    """This process as if it had been called so, with its output in a file: Flower writes past what Python redirects."""
    sys.stdout.flush()
    kept, sys.argv = sys.argv, [*arguments]
    stdout = os.dup(1)
    os.dup2(said.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        sys.argv = kept


def main() -> int:
    """Registers the devices of the home that is given as the only argument."""
    log = logging.Logger("registrar")
    log.addHandler(logging.StreamHandler(sys.stderr))
    try:
        added, removed = register(Home.open(Path(sys.argv[1])))
    except RunError as error:
        log.error("%s", error)
        return UNREACHED
    except ConfigError as error:
        log.error("%s", error)
        return 1
    if added or removed:
        log.info("registered: %s; taken out: %s", ", ".join(added) or "none", ", ".join(removed) or "none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
