"""The process that stays, over its real socket: what it answers, and what happens when it does not."""

import contextlib
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedgen.federation import packing, worker
from fedgen.federation.letter import MAX_BODY_BYTES, Letter
from tests.unit.federation.devices import Here, experiment_text, impostor, same

COMMAND = (sys.executable, "-m", "fedgen.federation.worker")
PATIENCE_S = 120.0


@contextlib.contextmanager
def working(folder):
    """A worker that listens; where, and its process."""
    path = str(folder / "s")
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*COMMAND, path], stderr=log, stdout=log)
    try:
        until(lambda: is_open(path))
        yield path, process
    finally:
        process.kill()
        process.wait()


def is_open(path):
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def text():
    return experiment_text("fleet=raspberry_pi")


@pytest.fixture(scope="module")
def here(text):
    return Here(text, plans=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with working(tmp_path_factory.mktemp("w")) as (path, process):
        yield path, process


@pytest.fixture
def ask(running, here, text):
    """What the worker answers to a request."""

    def asked(request):
        place = {"experiment": text, "client": request.client, "data": ""}
        return worker.call(running[0], packing.pack_request(request, here.clients), place, PATIENCE_S)

    return asked


def test_a_worker_answers_what_one_process_would_answer_to_the_bit(here, ask):
    for round, client in ((1, here.clients[0]), (2, here.clients[0]), (2, here.clients[2])):
        request = here.request(client, round)
        assert same(packing.open_reply(ask(request))) == same(here.answer(request))


def test_a_worker_tells_of_its_device(running, here, text):
    said = worker.call(running[0], packing.pack_hello(), {"experiment": text, "client": "owner-1"}, PATIENCE_S)
    report = packing.open_report(said)
    assert report["client"] == "owner-1"
    assert report["base"] == here.base.fingerprint
    assert 0.2 < report["memory_bytes"] / _kilobytes("/proc/meminfo", "MemAvailable") < 5


def test_the_peak_of_a_turn_is_that_of_the_turn(here, ask, running):
    reply = packing.open_reply(ask(here.request(here.clients[0])))
    # Since the worker began it had no more than this at any time, and has had since no more than in the turn.
    assert reply.metrics["peak_memory_bytes"] <= _kilobytes(f"/proc/{running[1].pid}/status", "VmHWM")
    assert reply.metrics["peak_memory_bytes"] < 2 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_nobody_but_its_user_can_open_the_socket(running):
    assert stat.S_IMODE(os.stat(running[0]).st_mode) == 0o600


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
        b"\x00",
        struct.pack("!IQ", 4, 0) + b"[[[[",
        struct.pack("!IQ", 2, 0) + b"{}",
        struct.pack("!IQ", 4, 0) + b"\xff\xfe\xff\xfe",
        struct.pack("!IQ", 2**32 - 1, 0),
        struct.pack("!IQ", 2, MAX_BODY_BYTES + 1) + b"{}",
        struct.pack("!IQ", 38, 0) + b'{"place":{"os":"system"},"header":"{}"}'[:38],
        struct.pack("!IQ", 2, 2**31) + b"{}" + b"x" * 1000,
    ],
)
def test_garbage_is_left_unanswered_and_does_no_harm(running, here, ask, garbage):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(running[0])
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert running[1].poll() is None
    assert packing.open_reply(ask(here.request(here.clients[0]))).error == ""


def test_a_body_that_is_only_promised_takes_no_memory(running, here, ask):
    before = _resident(running[1].pid)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(running[0])
        connection.sendall(struct.pack("!IQ", 2, MAX_BODY_BYTES) + b"{}")
        time.sleep(0.3)
        assert _resident(running[1].pid) < before + 2**26
    assert packing.open_reply(ask(here.request(here.clients[0]))).error == ""


def test_who_no_longer_waits_is_passed_over(running, here, ask):
    # While one turn is under way another waits, whose caller goes away.
    first = threading.Thread(target=ask, args=(here.request(here.clients[0]),))
    first.start()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.connect(running[0])
        gone.sendall(struct.pack("!IQ", 2, 0) + b"{}")
    first.join()
    assert packing.open_reply(ask(here.request(here.clients[0], 3))).round == 3


def test_a_place_that_is_none_leaves_the_caller_without_an_answer(running):
    with pytest.raises(ConnectionError):
        worker.call(running[0], Letter("{}"), {"experimnt": "x"}, PATIENCE_S)


def test_a_second_worker_does_not_take_the_socket_of_the_first(running):
    second = subprocess.run([*COMMAND, running[0]], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert second.returncode == 1
    assert second.stderr.startswith(f"cannot listen at {running[0]}: another worker listens there")


def test_a_path_that_is_too_long_is_told_without_a_traceback(tmp_path):
    path = str(tmp_path / ("x" * 200))
    ended = subprocess.run([*COMMAND, path], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1
    assert "give a path of at most 100 letters" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_that_dies_is_noticed_at_once_and_another_takes_its_place(tmp_path, text, here):
    request = packing.pack_request(here.request(here.clients[0]), here.clients)
    place = {"experiment": text, "client": here.clients[0]}
    with working(tmp_path) as (path, process):
        kill = threading.Timer(0.5, process.kill)
        os.kill(process.pid, signal.SIGSTOP)
        kill.start()
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            worker.call(path, request, place, PATIENCE_S)
        assert time.monotonic() - began < PATIENCE_S / 4
    with pytest.raises(ConnectionRefusedError):
        worker.call(path, request, place, PATIENCE_S)
    # What it left behind does not keep the next one from listening there.
    with working(tmp_path) as (again, _):
        assert again == path
        assert packing.open_reply(worker.call(path, request, place, PATIENCE_S)).error == ""


def test_a_worker_that_hangs_is_killed_when_its_time_is_over(tmp_path, text, here):
    request = packing.pack_request(here.request(here.clients[0]), here.clients)
    with working(tmp_path) as (path, process):
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            worker.call(path, request, {"experiment": text, "client": here.clients[0]}, 0.5)
        assert time.monotonic() - began < 5
        assert process.wait(10) == -signal.SIGKILL


def test_nobody_listens_where_nothing_is(tmp_path):
    with pytest.raises(FileNotFoundError):
        worker.call(str(tmp_path / "s"), Letter("{}"), {}, 1.0)


def test_an_answer_that_is_no_letter_is_refused(tmp_path):
    path = str(tmp_path / "s")
    with impostor(path, struct.pack("!IQ", 2**31, 0)), pytest.raises(ValueError, match="is no letter"):
        worker.call(path, Letter("{}"), {}, 10.0)


def _resident(pid):
    return _kilobytes(f"/proc/{pid}/status", "VmRSS")


def _kilobytes(file, name):
    rows = dict(line.split(":", 1) for line in Path(file).read_text().splitlines())
    return int(rows[name].split()[0]) * 1024
