"""Flower's grid in this process: it runs a real ClientApp, and fails as a SuperLink's nodes do."""

import dataclasses
import time
import uuid
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

SUPERLINK = 1
RAISED, OFFLINE = 2, 5
"""Flower's codes of errors."""


@dataclasses.dataclass
class Node:
    """A node and what becomes of messages to it.

    Attributes:
        app: answers.
        name: under which it was registered.
        delay_s: from a message to its answer; for ever: never.
        online: in the SuperLink's list.
        dead: the SuperLink answers in its place.
        taken: types of messages that came to it.
    """

    app: ClientApp
    name: str = ""
    delay_s: float = 0.0
    online: bool = True
    dead: bool = False
    taken: list[str] = dataclasses.field(default_factory=list)


class LocalGrid(Grid):
    """Messages are answered when they are pushed; answers can be pulled when their time has come."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        # The constructor of Message reads them; in a run Flower sets them.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK, 1
        self.nodes = nodes
        self.pushes: list[int] = []
        self._ready: dict[str, tuple[float, Message]] = {}

    def set_run(self, run: Any) -> None:
        """Not used."""

    @property
    def run(self) -> Any:
        """Not used."""
        return None

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        """Not used."""
        raise AssertionError("it is deprecated")

    def get_node_ids(self) -> list[int]:
        return [number for number, node in self.nodes.items() if node.online]

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=number, name=self.nodes[number].name) for number in self.get_node_ids()]

    def push_messages(self, messages: Any) -> list[str]:
        numbers = []
        for message in list(messages):
            number = message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            self.pushes.append(message.metadata.dst_node_id)
            node = self.nodes[message.metadata.dst_node_id]
            node.taken.append(message.metadata.message_type)
            self._ready[number] = time.monotonic() + node.delay_s, self._answer(node, message)
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Any) -> list[Message]:
        now = time.monotonic()
        due = [number for number in message_ids if number in self._ready and self._ready[number][0] <= now]
        return [self._ready.pop(number)[1] for number in due]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        """Not used."""
        raise AssertionError("it keeps every reply")

    def _answer(self, node: Node, message: Message) -> Message:
        if node.dead:
            answer = Message(Error(OFFLINE, "Node Unavailable"), reply_to=message)
            # What the SuperLink says in place of a node bears the SuperLink's number.
            answer.metadata.__dict__["_src_node_id"] = SUPERLINK
            return answer
        number = message.metadata.dst_node_id
        context = Context(run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={})
        try:
            return node.app(Message(content=_copied(message.content), metadata=message.metadata), context)
        except Exception as error:  # as Flower does
            return Message(Error(RAISED, str(error)), reply_to=message)


def _copied(content: RecordDict) -> RecordDict:
    """The same bytes in other records: neither end sees what the other does to its own."""
    copied = RecordDict()
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            copied[key] = ArrayRecord(
                {n: Array(dtype=a.dtype, shape=a.shape, stype=a.stype, data=a.data) for n, a in record.items()}
            )
        else:
            assert isinstance(record, ConfigRecord)
            copied[key] = ConfigRecord(dict(record))
    return copied


def answering(hello: Callable[[], Any], train: Callable[[Any], Any]) -> ClientApp:
    """A ClientApp of two functions: what it says of itself, and what it answers to a request; both give letters."""
    from fedgen.federation import envelope

    app = ClientApp()

    @app.query("hello")
    def on_hello(message: Message, context: Context) -> Message:
        return Message(envelope.put(hello()), reply_to=message)

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        return Message(envelope.put(train(envelope.take(message.content))), reply_to=message)

    return app
