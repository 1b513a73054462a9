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

def peak(num_owners, more):
    pid = os.fork()
    if not pid:
        os.environ["FEDGEN_RUNS"] = os.path.join(sys.argv[1], str(num_owners))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        words = ["model=tiny", "data=synthetic", f"data.num_owners={num_owners}", "num_rounds=2", "client.num_steps=2"]
        os._exit(main(["train", *words, "num_evaluated=16", "num_evaluated_per_round=16", *more]))
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, status
    return usage.ru_maxrss

print(json.dumps({number: peak(number, sys.argv[3:]) for number in json.loads(sys.argv[2])}))
"""


def peaks_of(folder, numbers, *more):
    """Peak memory of runs with so many clients, in kilobytes."""
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(numbers), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(done.stdout)[str(number)] for number in numbers]


def test_a_hundred_clients_need_what_four_need(tmp_path):
    few, many = peaks_of(tmp_path, [4, 100])
    assert many <= 1.1 * few, (few, many)


def test_so_do_fifty_that_each_train_another_part_of_all_weights(tmp_path):
    """The model is 27 MB, so that forty more updates would be there to see; ten fill all threads' arenas."""
    larger = ["model.hidden_size=384", "model.num_layers=4", "num_rounds=1", "data.num_train=4", "num_evaluated=4"]
    few, many = peaks_of(
        tmp_path, [10, 50], *larger, "adapter=full", "export=merged", "extraction=random", "fleet.widths=[0.5]"
    )
    assert many <= 1.1 * few, (few, many)
