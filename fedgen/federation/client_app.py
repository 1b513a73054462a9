"""What Flower starts on a device for every message: it hands the letter on, and always answers.

On a device the letter goes to the worker, which holds the model; this process imports no torch. In a simulation there
is no worker, and the letter is dealt with here. A message that is not answered would block its device for good, so
whatever happens becomes a reply with an error in a word.
"""

import logging

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedgen.federation import envelope
from fedgen.federation.letter import Letter, failure
from fedgen.federation.worker import call

TURN_LIMIT_S = 3600.0
"""A turn that takes longer hangs, unless the device's `turn_limit_s` says more."""

EXPERIMENT = "fedgen.experiment"
"""The run config's entry, which `run_config` writes."""

_log = logging.getLogger("fedgen")

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tells of this device."""
    return _respond(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Does what a request asks."""
    return _respond(message, context)


def _respond(message: Message, context: Context) -> Message:
    letter = Letter("")
    try:
        letter = envelope.take(message.content)
        answer = _answer(letter, context)
    except TimeoutError:
        answer = failure(letter.header, "timed_out")
    except OSError:
        _log.exception("the worker does not answer")
        answer = failure(letter.header, "died")
    except Exception:
        _log.exception("a message could not be dealt with")
        answer = failure(letter.header, "failed")
    return Message(envelope.put(answer), reply_to=message)


def _answer(letter: Letter, context: Context) -> Letter:
    """The answer of the worker; without one, of this process.

    Raises:
        OSError: the worker is dead or hangs.
        ValueError: what it answers is no letter.
    """
    node = context.node_config
    experiment = str(context.run_config.get(EXPERIMENT, ""))
    client, data = str(node.get("client", "")), str(node.get("data", ""))
    if "socket" in node:
        place: dict[str, object] = {"experiment": experiment, "client": client, "data": data}
        return call(str(node["socket"]), letter, place, float(node.get("turn_limit_s", TURN_LIMIT_S)))
    from fedgen.federation.desk import Place, deal

    return deal(letter, Place(experiment, client, data, partition=int(node.get("partition-id", 0))))
