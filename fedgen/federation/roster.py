"""Which node is which client, and which of them may be asked: no grid, no clock that ticks by itself."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import final

import fedgen
from fedgen.transport import Report

GREET_AGAIN_S = 30.0
"""A node that was refused, or whose answer to a hello did not come right, is asked again after this time."""


MEANINGS = {
    "config": "the experiment cannot be carried out there; the device's log says why",
    "no_data": "the data hold nothing of that device: name devices as the data name clients, or give them data of "
    "their own (data=jsonl, fedgen client --data)",
    "no_model": "the device has no such model, and asks no hub",
    "other_base": "the device has another model under that name",
    "other_version": "another version of fedgen",
    "unknown_client": "no device of fleet.json has that name",
    "other_name": "it says another name than it was registered under",
    "name_taken": "another device of that name is there",
}
"""Why a node does not take part, in a word, and what that means."""


@final
class Roster:
    """The clients of a run as they come and go.

    Attributes:
        round: number of rounds that have begun.

    Args:
        clients: names of all clients.
        base: SHA-256 of the model that all of them must have.
    """

    def __init__(self, clients: Sequence[str], base: str) -> None:
        self.round = 0
        self._clients, self._base = frozenset(clients), base
        self._registered: dict[int, str] = {}
        self._nodes: dict[str, int] = {}
        self._pending: set[int] = set()
        self._refused: dict[int, tuple[str, float]] = {}
        self._failures: dict[str, int] = {}
        self._rests: dict[str, int] = {}

    @property
    def missing(self) -> frozenset[str]:
        """Clients that are not there."""
        return self._clients.difference(self._nodes)

    @property
    def num_online(self) -> int:
        """Nodes that were online when last looked at, whoever they are."""
        return len(self._registered)

    @property
    def reasons(self) -> frozenset[str]:
        """Why nodes were refused."""
        return frozenset(reason for reason, _ in self._refused.values())

    def seen(self, registered: Mapping[int, str]) -> list[int]:
        """Takes note of who is online; returns the nodes that have to be greeted.

        Args:
            registered: node → the name under which it was registered; empty where nobody has given it one.
        """
        self._registered = dict(registered)
        self._nodes = {client: node for client, node in self._nodes.items() if node in registered}
        self._refused = {node: why for node, why in self._refused.items() if node in registered}
        self._pending &= registered.keys()
        recent = {node for node, (_, when) in self._refused.items() if time.monotonic() - when < GREET_AGAIN_S}
        new = sorted(registered.keys() - self._pending - recent - set(self._nodes.values()))
        self._pending |= set(new)
        return new

    def met(self, node: int, client: str, report: Report, reason: str) -> tuple[bool, str]:
        """Takes the answer to a greeting.

        Args:
            node: who was greeted.
            client: who it says that it is.
            report: what it says of itself.
            reason: why there is no answer; empty if there is one.

        Returns:
            Whether it may be asked from now on, and why not, if that was not known before.
        """
        if node not in self._pending:  # it has gone meanwhile, and will be greeted when it is back
            return False, ""
        self._pending.discard(node)
        reason = reason or self._objection(node, client, report)
        if not reason:
            self._refused.pop(node, None)
            self._nodes[client] = node
            return True, ""
        before, _ = self._refused.get(node, ("", 0.0))
        self._refused[node] = reason, time.monotonic()
        return False, reason if reason != before else ""

    def left(self, node: int) -> None:
        """A node is known to be gone, whatever Flower's list says; it is greeted when it is seen again."""
        self._nodes = {client: other for client, other in self._nodes.items() if other != node}

    def forget(self) -> None:
        """Everybody is to be greeted anew, for what they say of themselves."""
        self._nodes, self._pending = {}, set()

    def node_of(self, client: str) -> int | None:
        """The node of a client; None if it has gone."""
        return self._nodes.get(client)

    def next_round(self) -> None:
        """A round begins."""
        self.round += 1

    def count(self, client: str, *, failed: bool) -> None:
        """Takes note of how a client's request ended; who fails time and again rests for longer and longer."""
        if not failed:
            self._failures.pop(client, None)
            return
        number = self._failures[client] = self._failures.get(client, 0) + 1
        if number > 1:
            self._rests[client] = self.round + 2 ** (number - 2)

    def free(self, busy: Collection[str], least: int) -> list[str]:
        """Clients that may be asked in the next round, sorted.

        Args:
            busy: clients that still work on something.
            least: if there would be fewer, those rest no longer whose rest ends first.
        """
        here = sorted(self._nodes.keys() - set(busy))
        resting = sorted((c for c in here if self._rests.get(c, 0) > self.round), key=lambda c: (self._rests[c], c))
        called = max(0, least - (len(here) - len(resting)))
        return sorted(set(here) - set(resting[called:]))

    def _objection(self, node: int, client: str, report: Report) -> str:
        """Why a node cannot take part, in a word; empty if it can."""
        if client not in self._clients:
            return "unknown_client"
        if self._registered[node] not in ("", client):
            return "other_name"
        if client in self._nodes:
            return "name_taken"
        if _minor(str(report.get("fedgen", ""))) != _minor(fedgen.__version__):
            return "other_version"
        return "" if report.get("base") == self._base else "other_base"


def _minor(version: str) -> list[str]:
    """The part of a version that must be the same on both ends.

    >>> _minor("1.2.3")
    ['1', '2']
    """
    return version.split(".")[:2]
