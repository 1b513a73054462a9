"""A run that is killed at any moment is continued to the same bytes."""

import json
import subprocess
import sys

import pytest

# Forks real processes from one that has paid for the imports and has no threads yet, so that a kill costs no start-up.
SCRIPT = """
import hashlib, json, os, pathlib, random, signal, sys, time
import peft, torch, transformers
from fedgen import run as folders
from fedgen.cli import runs, train
from fedgen.cli.main import main
from fedgen.errors import RunError
from fedgen.federation import local

ARGUMENTS = [
    "recipe=tiny", "num_rounds=5", "aggregation.momentum=0.5", "cohort_size=3", "num_evaluated=16",
    "num_evaluated_per_round=16", "data.num_train=16", "client.num_steps=4", "selection=perplexity", *sys.argv[4:],
]

def begin(root, arguments):
    pid = os.fork()
    if pid:
        return pid
    os.environ["FEDGEN_RUNS"] = str(root)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os._exit(main(arguments))

def result(root):
    (folder,) = [path for path in root.iterdir() if not path.name.startswith(".")]
    files = {}
    for name in ("state", "server"):
        state = folder / "checkpoints/round-0005" / f"{name}.safetensors"
        files[name] = hashlib.sha256(state.read_bytes()).hexdigest()
    files["adapter"] = hashlib.sha256((folder / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = ("kind", "round", "client", "asked", "loss", "evaluation", "coverage", "num_pending", "text")
    files["journal"] = [[line.get(key) for key in told] for line in lines]
    return folder, files

def num_rounds(root):
    journals = [path.read_text() for path in root.glob("*/metrics.jsonl")] if root.exists() else []
    return journals[0].count('"kind": "round"') + journals[0].count('"kind":"round"') if journals else 0

work = pathlib.Path(sys.argv[1])
began = time.monotonic()
assert os.waitpid(begin(work / "unbroken", ["train", *ARGUMENTS]), 0)[1] == 0
whole = time.monotonic() - began
_, expected = result(work / "unbroken")
draw = random.Random(int(sys.argv[2]))
told = []
for number in range(int(sys.argv[3])):
    # A moment in a drawn round: waiting for the round itself keeps it there on a machine of any speed.
    root, rounds, delay = work / f"killed-{number}", draw.randrange(5), draw.random() * whole / 20
    pid = begin(root, ["train", *ARGUMENTS])
    while rounds and num_rounds(root) <= rounds:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
    found = [path for path in root.iterdir() if not path.name.startswith(".")] if root.exists() else []
    for path in found:
        folders.open_run(path)  # raises for a folder that is half there
    last = sorted(path.name for path in found[0].glob("checkpoints/round-????")) if found else []
    again = ["resume", str(found[0])] if found else ["train", *ARGUMENTS]
    assert os.waitpid(begin(root, again), 0)[1] == 0
    equal = result(root)[1] == expected
    told.append({"after": rounds, "delay": delay / whole, "killed": killed, "at": last[-1:], "equal": equal})
print(json.dumps(told))
"""


LATE = ["extraction=rolling", "extraction.stride=null", "fleet.delays=[0,2,1,1]"]


@pytest.mark.parametrize(("num_kills", "arguments"), [(5, []), (4, LATE)], ids=["in time", "late"])
def test_kills_at_random_moments_end_with_the_same_bytes(tmp_path, num_kills, arguments):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "20261123", str(num_kills), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert len(told) == num_kills
    assert sum(run["killed"] for run in told) >= 3, told
    assert all(run["equal"] for run in told), told
