"""The page over a real socket: what it answers, to whom, and that it runs nothing but its own script."""

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fedgen
from fedgen.deployment import dashboard
from fedgen.deployment.provision import provision
from fedgen.deployment.snapshot import Watch
from fedgen.errors import RunError

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return provision(tmp_path_factory.mktemp("fleet") / "home", "127.0.0.1:8443", ["a"]).home


@pytest.fixture
def port(home, tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    start = {"kind": "start", "name": HOSTILE, "round": 0, "num_rounds": 3, "clients": [HOSTILE]}
    (run / "observed.jsonl").write_text(json.dumps(start) + "\n")
    server = dashboard.server(Watch(home.path, tmp_path / "runs"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def ask(port, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def test_the_page_stands_alone_and_may_run_its_own_script_only(port):
    status, headers, page = ask(port)
    assert status == 200
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)[^"']*""", page) == []
    assert "https://" not in page
    assert "@import" not in page
    policy = headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy


def test_the_page_puts_what_it_is_told_into_text_alone(port):
    page = ask(port)[2]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
        assert way not in page
    assert HOSTILE not in page, "names come with the state, as JSON, and never in the page itself"


def test_the_state_is_json_whatever_names_say(port):
    status, headers, body = ask(port, "/state")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert headers["X-Content-Type-Options"] == "nosniff"
    state = json.loads(body)
    assert state["run"]["name"] == HOSTILE
    assert [device["name"] for device in state["devices"]] == [HOSTILE, "a"]


def test_what_has_not_changed_is_not_sent_again(port, tmp_path):
    _, headers, _ = ask(port, "/state")
    assert ask(port, "/state", If_None_Match=headers["ETag"])[0] == 304
    with (tmp_path / "runs" / "one" / "observed.jsonl").open("a") as file:
        file.write('{"kind": "dispatch", "round": 1, "clients": ["a"]}\n')
    status, headers, body = ask(port, "/state", If_None_Match=headers["ETag"])
    assert status == 200
    assert json.loads(body)["run"]["phase"] == "training"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST:99", "[::1]:8765"])
def test_this_machines_names_are_answered_also_through_a_tunnel(port, name):
    assert ask(port, "/state", Host=name)[0] == 200


@pytest.mark.parametrize("path", ["/", "/state"])
@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765", "", "[::1]x"]
)
def test_a_name_that_was_turned_to_this_machine_is_not(port, path, name):
    status, _, body = ask(port, path, Host=name)
    assert status == 421
    assert "devices" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(port, method):
    assert ask(port, "/", method)[0] == 405
    assert ask(port, "/state", method)[0] == 405


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/../etc/passwd", "/state/x", "/page/script.js"])
def test_there_is_nothing_else(port, path):
    assert ask(port, path)[0] == 404


def test_a_home_that_goes_away_is_said_and_not_died_of(port, home):
    (home.path / "fleet.json").rename(home.path / "away.json")
    status, _, body = ask(port, "/state")
    assert (status, "fleet.json" in json.loads(body)["error"]) == (200, True)
    (home.path / "away.json").rename(home.path / "fleet.json")
    assert "error" not in json.loads(ask(port, "/state")[2])


def test_a_port_in_use(home, port, tmp_path):
    with pytest.raises(RunError, match="name another with --port"):
        dashboard.serve(Watch(home.path, tmp_path), port, print)


def test_the_verb_listens_on_this_machine_alone_and_ends_at_an_interrupt(home, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "fedgen", "dashboard", str(home.path), "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(fedgen.__file__))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever the shell that started the tests does with interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line
        deadline = time.monotonic() + 20
        while True:
            try:
                assert ask(int(found[1]))[0] == 200
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        number = f"{int(found[1]):04X}"
        listeners = [row.split()[1] for row in Path("/proc/net/tcp").read_text().splitlines() if row.split()[3] == "0A"]
        assert [row for row in listeners if row.endswith(f":{number}")] == [f"0100007F:{number}"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()
