"""Memory does not grow with the number of clients."""

import json
import subprocess
import sys

# Each run is a process of its own, forked from one that has only paid for the imports; wait4 tells its peak.
SCRIPT = """
import json, os, sys
import peft, torch, transformers
from fedgen.cli import runs, train
from fedgen.cli.main import main
from fedgen.federation import local

def peak(num_owners):
    pid = os.fork()
    if not pid:
        os.environ["FEDGEN_RUNS"] = os.path.join(sys.argv[1], str(num_owners))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        words = ["model=tiny", "data=synthetic", f"data.num_owners={num_owners}", "num_rounds=2", "client.num_steps=2"]
        os._exit(main(["train", *words, "num_evaluated=16", "num_evaluated_per_round=16"]))
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, status
    return usage.ru_maxrss

print(json.dumps({number: peak(number) for number in (4, 100)}))
"""


def test_a_hundred_clients_need_what_four_need(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peaks = json.loads(done.stdout)
    assert peaks["100"] <= 1.1 * peaks["4"], peaks
