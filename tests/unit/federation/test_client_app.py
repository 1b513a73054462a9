"""What Flower calls on a device for every message: there is always an answer, and never a reason in words of ours."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgen.errors import ClientError
from fedgen.federation import envelope, packing
from fedgen.federation.client_app import app
from tests.unit.federation.devices import impostor, same
from tests.unit.federation.test_worker import working

HERE, THERE = 1, 17


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Flower's runtime says who writes a message."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, HERE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with working(tmp_path_factory.mktemp("w")) as (path, _):
        yield path


def answered(content, kind, node, text):
    """The letter that comes back when Flower hands a message over."""
    message = Message(content, dst_node_id=THERE, message_type=kind)
    run = {"fedgen.experiment": text, "fedgen.folder": "", "fedgen.clients": ""}
    reply = app(message, Context(HERE, THERE, node, RecordDict(), run))
    assert isinstance(reply, Message)
    assert not reply.has_error()
    assert reply.metadata.dst_node_id == message.metadata.src_node_id
    return envelope.take(reply.content)


def trained(here, request, node, text):
    content = envelope.put(packing.pack_request(request, here.clients))
    return packing.open_reply(answered(content, envelope.TRAIN, node, text))


def test_a_request_reaches_the_worker_and_its_answer_comes_back_to_the_bit(here, text, place):
    request = here.request(here.clients[1])
    node = {"client": here.clients[1], "socket": place}
    assert same(trained(here, request, node, text)) == same(here.answer(request))


def test_a_simulated_node_deals_with_it_itself_to_the_bit(here, text):
    for number, client in enumerate(here.clients):
        request = here.request(client)
        node = {"partition-id": number, "num-partitions": len(here.clients)}
        assert same(trained(here, request, node, text)) == same(here.answer(request))


@pytest.mark.parametrize("with_worker", [True, False])
def test_a_node_tells_who_it_is(here, text, place, with_worker):
    node = {"client": here.clients[2], "socket": place} if with_worker else {"partition-id": 2}
    report = packing.open_report(answered(envelope.put(packing.pack_hello()), envelope.HELLO, node, text))
    assert report["client"] == here.clients[2]
    assert report["base"] == here.base.fingerprint


def test_where_no_worker_is_the_answer_is_one_word(here, text, tmp_path):
    node = {"client": here.clients[0], "socket": str(tmp_path / "s")}
    reply = trained(here, here.request(here.clients[0], 4), node, text)
    assert (reply.round, reply.client, reply.error) == (4, here.clients[0], "died")
    with pytest.raises(ClientError) as caught:
        packing.open_report(answered(envelope.put(packing.pack_hello()), envelope.HELLO, node, text))
    assert caught.value.reason == "died"


def test_a_worker_that_dies_at_work_is_told_at_once(here, text, tmp_path):
    with working(tmp_path) as (path, process):
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(0.3, process.kill).start()
        began = time.monotonic()
        reply = trained(here, here.request(here.clients[0]), {"client": here.clients[0], "socket": path}, text)
        assert reply.error == "died"
        assert time.monotonic() - began < 10


def test_a_worker_that_hangs_is_told_and_killed(here, text, tmp_path):
    with working(tmp_path) as (path, process):
        os.kill(process.pid, signal.SIGSTOP)
        node = {"client": here.clients[0], "socket": path, "turn_limit_s": 0.5}
        assert trained(here, here.request(here.clients[0]), node, text).error == "timed_out"
        assert process.wait(10) == -signal.SIGKILL


def test_a_worker_that_answers_nonsense_has_failed(here, text, tmp_path):
    path = str(tmp_path / "s")
    with impostor(path, b"\xff" * 12):
        node = {"client": here.clients[0], "socket": path}
        assert trained(here, here.request(here.clients[0]), node, text).error == "failed"


@pytest.mark.parametrize(
    ("node", "reason"),
    [({"partition-id": "first"}, "failed"), ({"socket": "s", "turn_limit_s": "soon"}, "failed"), ({}, "malformed")],
)
def test_whatever_is_wrong_there_is_an_answer(text, node, reason):
    content = RecordDict({envelope.LETTER: ConfigRecord({"other": 1})})
    assert packing.open_reply(answered(content, envelope.TRAIN, node, text)).error == reason


def test_what_is_wrong_stays_on_the_device(here, text):
    secret = "/srv/secret/of/this/device"
    content = envelope.put(packing.pack_request(here.request(here.clients[0]), here.clients))
    letter = answered(content, envelope.TRAIN, {"client": here.clients[0], "data": f"path={secret}"}, text)
    assert packing.open_reply(letter).error == "config"
    assert secret not in letter.header


PROBE = """
import json, sys
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from fedgen.federation import envelope
from fedgen.federation.client_app import app
from fedgen.federation.letter import Letter

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
message = Message(envelope.put(Letter(json.dumps({"format": 1, "kind": "hello"}))), 17, envelope.HELLO)
node, run = {"socket": sys.argv[1], "client": "owner-0"}, {"fedgen.experiment": sys.argv[2]}
answer = envelope.take(app(message, Context(1, 17, node, RecordDict(), run)).content)
print(json.dumps([json.loads(answer.header)["report"]["client"], sorted(sys.modules)]))
"""


def test_flowers_process_answers_and_imports_nothing_heavy(text, place):
    ended = subprocess.run([sys.executable, "-c", PROBE, place, text], capture_output=True, text=True, check=True)
    client, modules = json.loads(ended.stdout)
    assert client == "owner-0"
    heavy = {"torch", "transformers", "peft", "ray", "hydra", "omegaconf", "safetensors", "tokenizers", "matplotlib"}
    assert heavy & set(modules) == set()
    needed = ("", ".client_app", ".envelope", ".letter", ".worker")
    assert [name for name in modules if name.startswith("fedgen.")] == [f"fedgen.federation{name}" for name in needed]
