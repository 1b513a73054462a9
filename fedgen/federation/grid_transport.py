"""Requests and replies over Flower's grid, pushed and pulled one at a time.

Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019, section 2.2: a round ends when enough
devices have answered, or when its time is over. Here every request gets exactly one reply whatever happens to the
device, and what comes after the end of its round is dropped.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from flwr.app import Message
from flwr.serverapp import Grid

from fedgen.errors import ClientError, RunError
from fedgen.federation import envelope, packing
from fedgen.federation.roster import MEANINGS, Roster
from fedgen.federation.shield import fault, registered
from fedgen.federation.terms import Terms
from fedgen.messages import Reply, Request
from fedgen.parts import Ground
from fedgen.records import warning
from fedgen.transport import Report
from fedgen.types import Observer, Record

TTL_FACTOR = 2
"""A request that no device has taken within so many deadlines is not handed out any more."""

LOOK_AGAIN_S = 30.0
"""When no device can work, all are asked anew after this time, and have as long to answer."""

TELL_AFTER_S = 10.0
"""A wait that is longer is told of."""


@dataclass(frozen=True)
class _Asked:
    """A request that is on its way: to which node, whose, and of which round."""

    node: int
    client: str
    round: int

    def failed(self, error: str) -> Reply:
        return Reply(self.round, self.client, error=error)


@final
class GridTransport:
    """Reaches clients through Flower.

    Args:
        grid: Flower's.
        ground: what is known before the first round; it names all clients.
        terms: how long a round waits.
        tell: is told what devices say of themselves, and whatever is refused or dropped.
    """

    def __init__(self, grid: Grid, ground: Ground, terms: Terms, tell: Observer) -> None:
        self._grid, self._ground, self._terms, self._tell = grid, ground, terms, tell
        self._roster = Roster(ground.clients, ground.base.fingerprint)
        self._reports: dict[str, Report] = {}
        self._outbox: list[Iterator[Request]] = []
        self._greeted: dict[str, int] = {}
        self._open: dict[str, _Asked] = {}
        self._closed: dict[str, _Asked] = {}
        self._begun = False
        self._idle_since: float | None = None

    def nodes(self) -> list[str]:
        """Clients that can be asked: they are online, were found fit, and work on nothing that was asked before.

        Waits until there are enough of them; before the first round, for all of them for a while.

        Raises:
            RunError: there were not enough for too long.
        """
        began, told = time.monotonic(), False
        while True:
            self._look()
            busy = {asked.client for asked in self._closed.values()}
            free, waited = self._roster.free(busy, self._terms.min_clients), time.monotonic() - began
            gathered = self._begun or waited >= self._terms.gather_s or self._all_heard
            if gathered and len(free) >= self._terms.min_clients:
                self._begun = True
                return free
            if not told and waited > min(TELL_AFTER_S, self._terms.patience_s or TELL_AFTER_S):
                told = True
                self._tell(warning(self._roster.round, f"{self._whom(free)}; waiting for more"))
            if gathered and self._terms.patience_s is not None and waited > self._terms.patience_s:
                raise RunError(f"{self._whom(free)}. Look at the devices with fedgen doctor, and start fedgen client")
            time.sleep(self._terms.poll_s)

    @property
    def _all_heard(self) -> bool:
        """Whether nobody else is to be expected: all clients are there, or as many nodes have been looked at."""
        return not self._roster.missing or (not self._greeted and self._roster.num_online >= len(self._ground.clients))

    def reports(self) -> Mapping[str, Report]:
        """What the devices last said of themselves."""
        return self._reports

    def look_again(self, why: str) -> bool:
        """Greets all devices anew after a while, for they say then what they have; False when patience is over."""
        now, patience = time.monotonic(), math.inf if self._terms.patience_s is None else self._terms.patience_s
        if self._idle_since is None:
            self._idle_since = now
            self._tell(warning(self._roster.round, f"{why}; waiting until they say otherwise"))
        left = self._idle_since + patience - now
        if left <= 0:
            return False
        time.sleep(min(LOOK_AGAIN_S, left))
        self._roster.forget()
        end = time.monotonic() + LOOK_AGAIN_S
        self._look()
        while self._greeted and time.monotonic() < end:
            time.sleep(self._terms.poll_s)
            self._look()
        return True

    def send(self, requests: Iterator[Request]) -> None:
        """Keeps the requests; they go out one by one when replies are asked for."""
        self._outbox.append(requests)
        self._idle_since = None

    def receive(self) -> Iterator[Reply]:
        """Replies as they come, exactly one for every request."""
        while self._outbox:
            self._roster.next_round()
            yield from self._push(self._outbox.pop(0))
            yield from self._pull()

    def _push(self, requests: Iterator[Request]) -> Iterator[Reply]:
        """Sends requests; yields replies to those that cannot be sent."""
        ttl = None if self._terms.deadline_s is None else TTL_FACTOR * self._terms.deadline_s
        for request in requests:
            node = self._roster.node_of(request.client)
            asked = _Asked(node or 0, request.client, request.round)
            sent = None
            if node is not None:
                content = envelope.put(packing.pack_request(request, self._ground.clients))
                sent = self._sent(Message(content, node, envelope.TRAIN, ttl=ttl, group_id=str(request.round)))
            if sent is None:
                yield self._counted(asked.failed("offline"))
            else:
                self._open[sent] = asked

    def _pull(self) -> Iterator[Reply]:
        """Replies to what is open, until none is or time is over."""
        # What a product of floats has too much must not count as a reply.
        num_needed = math.ceil(len(self._open) * self._terms.quorum - 1e-9)
        end = time.monotonic() + (math.inf if self._terms.deadline_s is None else self._terms.deadline_s)
        while self._open and time.monotonic() < end:
            began, num_before = time.monotonic(), len(self._open)
            for number, asked in list(self._open.items()):
                message = self._taken(number)
                if message is not None:
                    del self._open[number]
                    reply = self._read(asked, message)
                    del message  # the next one must not be held beside it
                    num_needed -= not reply.error
                    if num_needed == 0 and not reply.error:
                        end = min(end, time.monotonic() + self._terms.grace_s)
                    yield self._counted(reply)
                    del reply
            if len(self._open) == num_before:
                # Looking for many takes its time; at most half of it is spent on that.
                time.sleep(max(self._terms.poll_s, time.monotonic() - began))
        for number, asked in list(self._open.items()):
            self._closed[number] = self._open.pop(number)
            yield self._counted(asked.failed("late"))

    def _read(self, asked: _Asked, message: Message) -> Reply:
        """The reply in a message; an error reply if there is none that answers what was asked."""
        error = fault(message)
        if error:
            if error == "offline":
                self._roster.left(asked.node)
            return asked.failed(error)
        try:
            letter = envelope.take(message.content)
            self._note(asked.client, packing.open_report(letter))
            reply = packing.open_reply(letter)
        except ClientError as refusal:
            return asked.failed(refusal.reason)
        answers = reply.round == asked.round and reply.client == asked.client
        return reply if answers else asked.failed("malformed")

    def _counted(self, reply: Reply) -> Reply:
        self._roster.count(reply.client, failed=bool(reply.error))
        return reply

    def _look(self) -> None:
        """Who is online, who has answered a hello, and what comes in too late."""
        self._drop_late()
        for node in self._roster.seen(registered(self._grid)):
            # A round may begin without it, so nobody waits for the answer.
            sent = self._sent(Message(envelope.put(packing.pack_hello()), node, envelope.HELLO))
            self._greeted = {number: other for number, other in self._greeted.items() if other != node}
            if sent is not None:
                self._greeted[sent] = node
        for number, node in list(self._greeted.items()):
            message = self._taken(number)
            if message is not None:
                del self._greeted[number]
                self._meet(node, message)

    def _meet(self, node: int, message: Message) -> None:
        """Takes the answer to a hello."""
        reason, report = fault(message), {}
        if not reason:
            try:
                report = packing.open_report(envelope.take(message.content))
            except ClientError as refusal:
                reason = refusal.reason
        client = str(report.get("client", ""))
        met, news = self._roster.met(node, client, report, reason)
        if news:
            self._tell({"kind": "refused", "when": time.time(), "client": client, "node": str(node), "reason": news})
        if met:
            self._note(client, report)
            # A node answers in the order in which it was asked: what it has not answered by now it never will.
            self._closed = {number: asked for number, asked in self._closed.items() if asked.node != node}

    def _note(self, client: str, report: Report) -> None:
        if report:
            self._reports[client] = report
            told: Record = {**report, "kind": "device", "when": time.time(), "client": client}
            self._tell(told)

    def _drop_late(self) -> None:
        """Drops what comes after the end of its round; its node is free again."""
        for number, asked in list(self._closed.items()):
            message = self._taken(number)
            if message is not None:
                del self._closed[number]
                reason = fault(message)
                if reason == "offline":
                    self._roster.left(asked.node)
                told = {"kind": "stale", "when": time.time(), "client": asked.client, "asked": asked.round}
                self._tell(told | ({"reason": reason} if reason else {}))

    def _sent(self, message: Message) -> str | None:
        """The number that Flower gives a message; None if it cannot be sent."""
        # A list: Flower goes through it twice.
        numbers = list(self._grid.push_messages([message]))
        return numbers[0] if numbers and numbers[0] else None

    def _taken(self, number: str) -> Message | None:
        """The answer to a message, if it is there."""
        for message in self._grid.pull_messages([number]):
            # Not by its sender: what Flower says on behalf of a node bears Flower's own number.
            if message.metadata.reply_to_message_id == number:
                return message
        return None

    def _whom(self, free: list[str]) -> str:
        meant = [f"{word} ({MEANINGS[word]})" if word in MEANINGS else word for word in sorted(self._roster.reasons)]
        refused = f"; refused were nodes for {', '.join(meant)}" if meant else ""
        return (
            f"{len(free)} of {len(self._ground.clients)} clients can be asked, and a round begins with at least "
            f"{self._terms.min_clients}{refused}"
        )
