"""The demonstration, and what can be drilled without root and in a short time: devices as processes of this machine."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import deployed  # noqa: E402 - found there
import rogue  # noqa: E402

pytestmark = pytest.mark.slow

QUICK = ["data.num_train=16", "data.num_eval=16", "num_evaluated=8", "num_evaluated_per_round=8"]


@pytest.fixture
def short():
    """A folder with a short path: sockets have no more than some hundred characters for theirs."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="d-") as folder:
        yield Path(folder)


def test_the_demonstration_trains_shows_its_page_and_leaves_nothing_running(short):
    tmp_path = short
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FEDGEN_RUNS": str(tmp_path / "runs"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py"), *QUICK, "num_rounds=1", "client.num_steps=2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 devices on this machine: owner-0, owner-1, owner-2" in done.stdout
    assert "look at them: http://127.0.0.1:" in done.stdout
    assert done.stdout.rstrip().endswith("demo: stopped")
    [run] = (tmp_path / "runs").iterdir()
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert (run / "report.html").is_file()
    # Neither the home nor a process that lives on it.
    assert list(tmp_path.glob("fedgen-*")) == []
    assert processes(str(tmp_path)) == []


def processes(mark):
    return [
        p for p in psutil.process_iter(["environ"]) if mark in str(p.info["environ"] or "") and p.pid != os.getpid()
    ]


def test_an_exception_and_a_death_on_devices_are_told_in_a_word_and_the_run_goes_on(tmp_path):
    clients = ("owner-0", "owner-1")
    taken_over = {"owner-1": (sys.executable, rogue.__file__)}
    with deployed.Deployment(clients, programs=taken_over) as there:
        (there.folder / "owner-1" / "orders.json").write_text(json.dumps({"2": "raise"}))
        words = ["recipe=tiny", "data.num_owners=2", *QUICK, "num_rounds=4", "client.num_steps=200"]
        train = there.spawn("train", "train", *words, "federation=superlink", f"federation.home={there.home}")

        def told(kind):
            files = list(there.runs.glob("*/observed.jsonl"))
            lines = files[0].read_bytes().splitlines(keepends=True) if files else []
            found = [json.loads(line) for line in lines if line.endswith(b"\n")]
            return [line for line in found if line["kind"] == kind]

        there.until(lambda: any(line["round"] == 3 for line in told("dispatch")), "round 3 begins")
        [worker] = [pid for pid in there.left() if is_worker(pid, "owner-0")]
        before = deployed.cpu_s(worker)
        there.until(lambda: deployed.cpu_s(worker) > before + 0.3, "the device works")
        os.kill(worker, signal.SIGKILL)
        there.until(lambda: train.poll() is not None, "the run is over")
        assert train.returncode == 0, there.said("train")
        refused = {(line["client"], line["round"]): line["refused"] for line in told("client")}
        assert {key: word for key, word in refused.items() if word} == {
            ("owner-1", 2): "failed",
            ("owner-0", 3): "died",
        }
        assert len(refused) == 8
        on_the_server = [*there.home.rglob("*.log"), *there.runs.rglob("*.jsonl"), there.folder / "train.out"]
        assert len(on_the_server) >= 6
        assert not any(rogue.SECRET in file.read_text(errors="replace") for file in on_the_server)
        assert rogue.SECRET in (there.folder / "owner-1" / "state" / "logs" / "worker.log").read_text()
        folder = str(there.folder)
    assert processes(folder) == []


def is_worker(pid, client):
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return "fedgen.federation.worker" in words and any(word.endswith(f"/{client}/state/worker.sock") for word in words)
