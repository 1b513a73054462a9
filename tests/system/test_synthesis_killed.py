"""A synthesis that is killed in the middle is continued by the next process to the same bytes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys, time
from dataclasses import dataclass
from pathlib import Path
from fedgen.config.catalogue import shipped
from fedgen.generator.grammar import Grammar
from fedgen.synthesis.making import Synthesis
from fedgen.task_file import read_task

@dataclass(frozen=True)
class Slow:
    seconds: float
    kind = "commands"
    licence = "none"

    def plan(self, task, num_examples, seed):
        return Grammar(per_order=4).plan(task, num_examples, seed)

    def generate(self, task, orders, seed):
        for order in orders:
            time.sleep(self.seconds)
            print(order.index, flush=True)
            yield from Grammar(per_order=4).generate(task, [order], seed)

    def vary(self, task, drafts, degree, seed):
        return iter(drafts)

    def fingerprint(self):
        return "slow"

task = read_task(shipped("configs") / "task" / "smart_home.yaml")
Synthesis(task, Slow(float(sys.argv[2])), 400, seed=1).carry_out(Path(sys.argv[1]))
"""


def begin(cache: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(cache), str(seconds)], stdout=subprocess.PIPE, text=True)


def files(cache: Path) -> dict[str, bytes]:
    (folder,) = cache.iterdir()
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def test_killed_synthesis_is_continued_to_the_same_bytes(tmp_path):
    whole = begin(tmp_path / "whole", 0.002)
    orders = [int(line) for line in whole.communicate(timeout=120)[0].split()]
    assert whole.returncode == 0
    expected = files(tmp_path / "whole")
    assert orders == list(range(len(orders)))

    cache, first_orders = tmp_path / "killed", []
    for place in (40, 100):
        process = begin(cache, 0.002)
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(int(line))
            if told[-1] >= place:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        first_orders.append(told[0])
    last = begin(cache, 0.002)
    rest = [int(line) for line in last.communicate(timeout=120)[0].split()]
    first_orders.append(rest[0])
    assert last.returncode == 0
    assert files(cache) == expected
    # Each goes on from the batches that are on the disk.
    assert first_orders == sorted(set(first_orders))
    assert first_orders[0] == 0
    assert rest[-1] == orders[-1]
    assert json.loads(expected["manifest.json"])["files"]["orders.jsonl"]["rows"] == len(orders)


def test_two_processes_make_a_set_once(tmp_path):
    pair = [begin(tmp_path, 0.01), begin(tmp_path, 0.01)]
    told = [process.communicate(timeout=120)[0].split() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    # Whoever came second waited, and found the set.
    assert min(len(lines) for lines in told) == 0 < max(len(lines) for lines in told)
