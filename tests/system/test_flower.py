"""Whole runs under Flower: Ray's processes, and devices with keys over TLS, give the bytes of a run in one process."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from fedgen.ports import free_port

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "recipe=tiny", "num_rounds=3", "aggregation.momentum=0.5", "num_evaluated=16", "num_evaluated_per_round=16",
    "data.num_train=16", "client.num_steps=4",
]  # fmt: skip
CLIENTS = [f"owner-{number}" for number in range(4)]


class Machine:
    """Runs fedgen's commands in a folder of runs, and finds every process that comes of them."""

    def __init__(self, root):
        self.root, self.mark = root, uuid.uuid4().hex
        root.mkdir()
        # Ray's sockets lie in there, and their paths must be short.
        self.temporary = Path(tempfile.mkdtemp())
        self.environment = os.environ | {
            "FEDGEN_RUNS": str(root / "runs"),
            "FEDGEN_TEST": self.mark,
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

    def start(self, *arguments):
        with (self.root / "output").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "fedgen", *arguments], env=self.environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def call(self, *arguments, timeout_s=240):
        (self.root / "output").write_bytes(b"")
        status = self.start(*arguments).wait(timeout_s)
        return status, (self.root / "output").read_text()

    @property
    def run(self):
        (folder,) = (path for path in (self.root / "runs").iterdir() if not path.name.startswith("."))
        return folder

    def left(self):
        """Numbers of the processes that are there, whoever their parent is."""
        marks = self.mark.encode(), str(self.temporary).encode()
        found = []
        for process in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
            with contextlib.suppress(OSError):
                # Ray's workers write over their environment, and keep logs open.
                signs = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
                signs += b"".join(os.fsencode(os.readlink(file)) for file in (process / "fd").iterdir())
                if any(mark in signs for mark in marks):
                    found.append(int(process.name))
        return found

    def until(self, condition, timeout_s=120):
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, (self.root / "output").read_text()[-3000:]
            time.sleep(0.05)


def bytes_of(run):
    """What must be the same, whatever carried the run: state, server state, and what the journal says of the result."""
    files = [run / "checkpoints" / "round-0003" / f"{name}.safetensors" for name in ("state", "server")]
    files.append(run / "adapter" / "adapter_model.safetensors")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = (
        "kind",
        "round",
        "client",
        "loss",
        "refused",
        "num_examples",
        "bytes_down",
        "bytes_up",
        "evaluation",
        "coverage",
    )
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return digests, [[line.get(key) for key in told] for line in lines]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    machine = Machine(tmp_path_factory.mktemp("local") / "m")
    status, output = machine.call("train", *ARGUMENTS)
    assert status == 0, output
    return bytes_of(machine.run)


def test_a_simulation_has_the_bytes_of_a_run_in_one_process_and_leaves_no_process(expected, tmp_path):
    machine = Machine(tmp_path / "m")
    status, output = machine.call("train", *ARGUMENTS, "federation=simulation")
    assert status == 0, output
    assert bytes_of(machine.run) == expected
    assert machine.left() == []
    assert list(machine.temporary.glob("fedgen-*")) == []
    # A run that is over needs neither Ray nor Flower to say so.
    began = time.monotonic()
    status, output = machine.call("resume", str(machine.run))
    assert status == 0, output
    assert bytes_of(machine.run) == expected
    assert time.monotonic() - began < 60


def test_a_simulation_that_is_killed_is_continued_to_the_same_bytes(expected, tmp_path):
    machine = Machine(tmp_path / "m")
    process = machine.start("train", *ARGUMENTS, "federation=simulation")
    machine.until(lambda: list(machine.root.glob("runs/*/checkpoints/round-0001")) or process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (machine.root / "output").read_text()
    machine.until(lambda: machine.left() == [], 20)
    assert not (machine.run / "adapter").exists()
    copy = machine.root / "copy"
    shutil.copytree(machine.run, copy)
    status, output = machine.call("resume", str(machine.run))
    assert status == 0, output
    assert bytes_of(machine.run) == expected
    for state in copy.glob("checkpoints/*/state.safetensors"):
        state.write_bytes(b"damaged")
    # What goes wrong in the server's part, in a process of Flower's, is told as what goes wrong in one's own.
    status, output = machine.call("resume", str(copy))
    assert status == 2, output
    assert "fedgen: no checkpoint in" in output
    assert "Traceback" not in output
    assert machine.left() == []


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A server, and a client for each of four devices, all on this machine."""
    machine = Machine(tmp_path_factory.mktemp("fleet") / "m")
    home = machine.root / "home"
    devices = [word for client in CLIENTS for word in ("--device", client)]
    status, output = machine.call("provision", str(home), "--server", f"127.0.0.1:{free_port()}", *devices)
    assert status == 0, output
    processes = [machine.start("server", str(home))]
    try:
        processes += [machine.start("client", str(home / "bundles" / client)) for client in CLIENTS]
        yield machine, home
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
    assert machine.left() == []


def test_devices_with_keys_over_tls_give_the_bytes_of_a_run_in_one_process(expected, fleet):
    machine, home = fleet
    watcher = machine.start("train", *ARGUMENTS, "federation=superlink", f"federation.home={home}")
    machine.until(lambda: list(machine.root.glob("runs/*/checkpoints/round-0001")) or watcher.poll() is not None)
    # The run belongs to the server: it goes on without the one who watches, and is followed again.
    watcher.kill()
    assert watcher.wait() == -signal.SIGKILL, (machine.root / "output").read_text()
    status, output = machine.call("resume", str(machine.run))
    assert status == 0, output
    assert "tiny: 4 clients, 3 rounds, in" in output
    assert bytes_of(machine.run) == expected
    told = [json.loads(line) for line in (machine.run / "observed.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in told].count("start") == 1
    assert {record["client"] for record in told if record["kind"] == "device"} == set(CLIENTS)
