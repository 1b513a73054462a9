"""What the benchmark of a deployment makes of journals and processes, and the slow link of the drills."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import deployed  # noqa: E402 - found there
import deployment  # noqa: E402

from fedgen.ports import free_port  # noqa: E402


def client(name, number, compute_s):
    return {"kind": "client", "client": name, "round": number, "seconds": {"compute": compute_s}}


LINES = [
    {"kind": "round", "round": 0, "seconds": {"total": 1.0}},
    client("a", 1, 5.0),
    client("b", 1, 6.0),
    {"kind": "round", "round": 1, "seconds": {"total": 30.0}},
    client("a", 2, 2.0),
    client("b", 2, 3.0),
    {"kind": "round", "round": 2, "seconds": {"total": 10.0, "evaluate": 0.5}},
    client("a", 3, 2.0),
    client("b", 3, 1.0),
    {"kind": "round", "round": 3, "seconds": {"total": 8.0}},
]


def test_of_a_round_its_evaluation_and_its_slowest_training_do_not_count_nor_does_the_first_round():
    assert deployment.overheads(LINES) == [10.0 - 0.5 - 3.0, 8.0 - 2.0]


def test_a_device_is_charged_with_its_process_and_the_rest_of_its_turn():
    # Before the three rounds there was a hello, and another run before that.
    lives = {"a": [9.0, 9.0, 1.0, 1.25, 1.5], "b": [9.0, 1.0, 1.0, 2.0]}
    answers = [("a", 9.0), ("b", 9.0), ("a", 7.0), ("b", 7.0), ("a", 2.25), ("b", 3.5), ("a", 2.0), ("b", 1.0)]
    told = [{"client": name, "seconds_to_answer": seconds} for name, seconds in answers]
    assert deployment.over_training(lives, LINES, told) == [1.25 + 0.25, 1.5 + 0.0, 1.0 + 0.5, 2.0 + 0.0]


def test_time_of_the_processor_is_that_of_the_process():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time(), flush=True)\ninput()"
    process = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    said = float(process.stdout.readline())
    assert deployed.cpu_s(process.pid) == pytest.approx(said, abs=0.05)
    process.communicate(b"\n")
    assert deployed.cpu_s(process.pid) == 0.0


def test_a_slow_link_lets_every_byte_wait_and_loses_none():
    from slow_link import serve

    sent = bytes(range(256)) * 1024

    async def echo(reader, writer):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def through(delay_s):
        there, here = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
        server = await asyncio.start_server(echo, *there)
        link = asyncio.create_task(serve(here, there, delay_s))
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection(*here)
        began = time.monotonic()
        writer.write(sent[:1])
        got = await reader.readexactly(1)
        first_s = time.monotonic() - began
        writer.write(sent[1:])
        writer.write_eof()
        got += await reader.read(-1)
        writer.close()
        link.cancel()
        server.close()
        await asyncio.gather(link, return_exceptions=True)
        return got, first_s

    got, first_s = asyncio.run(through(0.2))
    assert got == sent
    # There and back, and once more for the connection itself.
    assert 0.6 <= first_s < 3.0
