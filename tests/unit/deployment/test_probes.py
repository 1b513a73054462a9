"""Each probe on real files, real processes and real sockets."""

import _socket
import hashlib
import json
import os
import signal
import socket
import sys
import time

import pytest

import fedgen
from fedgen.deployment.address import Address
from fedgen.deployment.bundle import Bundle
from fedgen.deployment.home import Home
from fedgen.deployment.probes import keys, link, machine, model, software
from fedgen.deployment.provision import provision
from tests.unit.deployment.server_double import serving

HOUR_S, DAY_S = 3600, 86400


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return provision(tmp_path_factory.mktemp("fleet") / "home", "127.0.0.1:8443", ["kitchen"]).home


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return provision(tmp_path_factory.mktemp("other") / "home", "fl.example:8443", ["kitchen"]).home


@pytest.fixture
def up(home):
    with serving(home) as port:
        yield port


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# The way to the server.


def test_a_server_that_answers(up):
    assert link.answers("127.0.0.1", up).word == "ok"


def test_a_closed_port_says_how_to_start_the_server():
    found = link.answers("127.0.0.1", closed_port())
    assert (found.word, "fedgen server" in found.advice, "refuses" in found.got) == ("fail", True, True)
    assert link.answers("127.0.0.1", closed_port(), down="warn").word == "warn"


def test_a_name_that_is_none_does_not_resolve(monkeypatch):
    # A label of 64 letters is refused before any name server is asked.
    monkeypatch.setattr(socket, "getaddrinfo", _socket.getaddrinfo)
    found = link.answers("a" * 64 + ".example", 1)
    assert (found.word, "does not resolve" in found.got) == ("fail", True)


def test_a_certificate_of_the_bundles_authority(home, up):
    found = link.certificate("127.0.0.1", up, home.path / "ca.crt")
    assert (found.word, found.got) == ("ok", "valid for 824 more days")


@pytest.mark.parametrize(("later", "word"), [(800, "warn"), (826, "fail")])
def test_a_certificate_that_ends(home, up, later, word):
    found = link.certificate("127.0.0.1", up, home.path / "ca.crt", now=time.time() + later * DAY_S)
    assert (found.word, "fedgen provision" in found.advice) == (word, True)


def test_a_certificate_of_another_authority(other, up):
    found = link.certificate("127.0.0.1", up, other.path / "ca.crt")
    assert (found.word, "another server" in found.advice) == ("fail", True)


def test_a_certificate_for_another_address(other):
    with serving(other) as port:
        found = link.certificate("127.0.0.2", port, other.path / "ca.crt")
    # The server listens on 127.0.0.1 alone; where the kernel lets 127.0.0.2 through, the name is what is wrong.
    assert found.word in {"fail", "warn"}
    assert found.word == "warn" or "another address" in found.advice


def test_what_is_no_certificate(home, up):
    found = link.certificate("127.0.0.1", up, home.path / "fleet.json")
    assert (found.word, "cannot be used" in found.got) == ("fail", True)


def joined(home, port):
    bundle = Bundle.open(home.bundle("kitchen"))
    return Bundle(bundle.path, Address("127.0.0.1", port), bundle.client, bundle.fedgen)


@pytest.mark.parametrize(
    ("server_ahead_s", "word", "said"),
    [
        (0, "ok", "to a second"),
        (-HOUR_S, "fail", "60 min ahead of"),
        (HOUR_S, "fail", "60 min behind"),
        (-6, "fail", "ahead of"),
        (290, "warn", "behind"),
        (20, "ok", "behind"),
    ],
)
def test_the_clock_against_the_servers(home, server_ahead_s, word, said):
    with serving(home, server_ahead_s) as port:
        found = link.clock(joined(home, port))
    assert (found.word, said in found.got) == (word, True), found
    assert ("set-ntp" in found.advice) == (word != "ok")


@pytest.mark.parametrize(
    ("ahead_s", "word"),
    [(0.9, "ok"), (2.5, "warn"), (4.5, "fail"), (-59.0, "ok"), (-61.0, "warn"), (-299.0, "warn"), (-301.0, "fail")],
)
def test_how_far_a_clock_may_be_off(ahead_s, word):
    assert link.judged(ahead_s).word == word


def test_the_word_of_a_foreign_server_is_not_taken_for_the_time(other, home):
    with serving(home, HOUR_S) as port:
        assert link.clock(joined(other, port)).word == "warn"


def test_a_server_that_does_not_tell_the_time(home):
    with serving(home, None) as port:
        assert link.clock(joined(home, port)).word == "warn"
    assert link.clock(joined(home, closed_port())).word == "warn"


@pytest.mark.parametrize(
    ("status", "said", "word"), [(401, "unknown device\n", "fail"), (401, "no signature", "ok"), (503, "", "fail")]
)
def test_whether_the_server_takes_the_device(home, status, said, word):
    with serving(home, 0, status, said) as port:
        found = link.admitted(joined(home, port))
    assert found.word == word, found
    assert (status != 401 or word == "ok") or "fedgen provision HOME --device" in found.got


# Keys.


def test_a_whole_bundle(home):
    bundle = Bundle.open(home.bundle("kitchen"))
    assert keys.pair(bundle).word == "ok"
    assert keys.authority(bundle).word == "ok"
    assert keys.authority(bundle, now=time.time() + 3640 * DAY_S).word == "warn"
    early = keys.authority(bundle, now=0.0)
    assert (early.word, "set-ntp" in early.advice) == ("fail", True)


def test_keys_that_are_no_pair(tmp_path, other):
    made = provision(tmp_path / "home", "127.0.0.1:8443", ["kitchen"]).home
    foreign = (other.bundle("kitchen") / "node.pub").read_bytes()
    (made.bundle("kitchen") / "node.pub").write_bytes(foreign)
    assert keys.pair(Bundle.open(made.bundle("kitchen"))).got == "node.key and node.pub are no pair"


def test_a_servers_certificate(tmp_path):
    made = provision(tmp_path / "home", "127.0.0.1:8443", []).home
    assert keys.server_certificate(made).word == "ok"
    (made.path / "server.key").chmod(0o644)
    found = keys.server_certificate(Home.open(made.path))
    assert (found.word, "chmod 600" in found.got) == ("fail", True)


@pytest.mark.parametrize(
    ("devices", "nodes", "word"),
    [
        ([], {}, "warn"),
        (["a"], None, "warn"),
        (["a", "b"], {"a": "online"}, "fail"),
        (["a", "b"], {"a": "online", "b": "registered"}, "ok"),
    ],
)
def test_keys_that_the_server_knows(devices, nodes, word):
    assert keys.registered(devices, nodes).word == word


# Software.


def test_this_interpreter_will_do():
    assert software.python().word == "ok"


@pytest.mark.parametrize(
    ("version", "word"),
    [("1.41.0", "ok"), ("1.42.3", "ok"), ("1.40.9", "fail"), ("1.43.0", "fail"), ("2.0", "fail"), (None, "fail")],
)
def test_flower(version, word):
    assert software.flower(version).word == word


def test_a_bundle_of_another_version():
    assert software.own_version(None).word == software.own_version(fedgen.__version__).word == "ok"
    assert software.own_version("0.99.0").word == "fail"


def test_torch_computes_in_a_process_of_its_own():
    found = software.torch()
    assert found.word == "ok", found


@pytest.mark.parametrize(
    ("code", "word", "said"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})", "fail", "SIGILL"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "fail", "memory"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "fail", "SIGSEGV"),
        ("raise ImportError('libcudart.so.13')", "fail", "libcudart.so.13"),
        ("import time; time.sleep(9)", "fail", "did not answer"),
        ("pass", "fail", "it said nothing"),
    ],
)
def test_a_torch_that_dies_is_told_in_words(code, word, said):
    limit = 0.5 if "sleep" in code else 20.0
    found = software.torch([sys.executable, "-c", code], longest_s=limit)
    assert (found.word, said in found.got, bool(found.advice)) == (word, True, True), found


@pytest.mark.parametrize(
    ("told", "processor", "word", "advised"),
    [
        ({"cuda": "13.0"}, "aarch64", "warn", "index that pytorch.org names"),
        ({"cuda": "13.0"}, "x86_64", "ok", ""),
        ({"right": False}, "x86_64", "fail", "power"),
        ({"torch": "2.9.1"}, "aarch64", "fail", "index that pytorch.org names"),
    ],
)
def test_what_torch_tells_of_itself(told, processor, word, advised):
    whole = {"torch": "2.13.0", "cuda": None, "right": True, "threads": 4, **told}
    found = software.torch([sys.executable, "-c", f"print({json.dumps(json.dumps(whole))})"], processor)
    assert (found.word, advised in found.advice) == (word, True)


# The machine, as files under a root of our own tell it.


def kernel(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def meminfo(total_mb, free_mb, swap_mb=0):
    numbers = {"MemTotal": total_mb, "MemAvailable": free_mb, "SwapTotal": swap_mb}
    return "".join(f"{name}: {megabytes * 1000} kB\n" for name, megabytes in numbers.items())


STATUS = {"proc/self/status": "VmRSS: 0 kB\n"}


@pytest.mark.parametrize(("total", "free", "word"), [(430, 300, "fail"), (920, 500, "warn"), (3800, 3200, "ok")])
def test_memory(tmp_path, total, free, word):
    assert machine.memory(kernel(tmp_path, {"proc/meminfo": meminfo(total, free), **STATUS})).word == word


def test_this_machines_memory_is_what_the_kernel_says():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.meminfo()["MemTotal"] == pytest.approx(pages, rel=0.02)


@pytest.mark.parametrize(
    ("total", "lines", "word"),
    [
        (920, "", "warn"),
        (920, "/dev/zram0 partition 460000 0 100\n", "ok"),
        (920, "/var/swap file 102396 0 -2\n", "warn"),
        (1800, "/dev/mmcblk0p3 partition 102396 0 -2\n", "warn"),
        (7900, "", "ok"),
    ],
)
def test_swap(tmp_path, total, lines, word):
    swaps = "Filename Type Size Used Priority\n" + lines
    found = machine.swap(kernel(tmp_path, {"proc/meminfo": meminfo(total, 500, 460), "proc/swaps": swaps}))
    assert (found.word, "zram" in found.advice) == (word, word == "warn")


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n"}, "ok"),
        ({"sys/fs/cgroup/cgroup.controllers": "cpu io pids\n"}, "warn"),
        ({"proc/cgroups": "#subsys_name hierarchy num_cgroups enabled\nmemory 4 10 1\n"}, "ok"),
        ({"proc/cgroups": "#subsys_name hierarchy num_cgroups enabled\nmemory 0 1 0\n"}, "warn"),
        ({}, "warn"),
    ],
)
def test_the_memory_cgroup(tmp_path, files, word):
    found = machine.memory_limit(kernel(tmp_path, files))
    assert (found.word, "cgroup_enable=memory" in found.advice) == (word, word == "warn")


def test_disk(tmp_path, monkeypatch):
    assert machine.disk(tmp_path / "not" / "there" / "yet").word == "ok"
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    monkeypatch.setattr(machine, "ENOUGH_DISK_BYTES", 2 * free)
    assert machine.disk(tmp_path).word == "warn"
    monkeypatch.setattr(machine, "LEAST_DISK_BYTES", 2 * free)
    assert machine.disk(tmp_path).word == "fail"


@pytest.mark.parametrize(
    ("degrees", "bits", "word", "said"),
    [
        (48_500, "0x0", "ok", "48 °C"),
        (81_000, "0x0", "warn", "81 °C"),
        (86_000, "0x0", "fail", "86 °C"),
        (60_000, "0x50005", "warn", "60 °C, under-voltage, throttled"),
        (60_000, "0x50000", "warn", "under-voltage since start"),
        (60_000, "0x4", "warn", "throttled"),
        (60_000, "0x80000", "ok", "soft temperature limit was reached"),
    ],
)
def test_heat_and_power(tmp_path, monkeypatch, degrees, bits, word, said):
    root = kernel(tmp_path, {"sys/class/thermal/thermal_zone0/temp": f"{degrees}\n"})
    command = tmp_path / "bin" / "vcgencmd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled={bits}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent))
    found = machine.heat(root)
    assert (found.word, said in found.got) == (word, True), found


def test_a_machine_without_sensors(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine.heat(tmp_path)
    assert (found.word, found.got) == ("ok", "no sensor")


# The model.


def test_a_model_that_is_there_and_one_that_is_another(tmp_path):
    (tmp_path / "weights.gguf").write_bytes(b"weights")
    digest = "9d27a9a4d5e9b9c1a3c98bd0d2cf1d4b"
    found = model.model_file(str(tmp_path / "weights.gguf"), None)
    assert found.word == "ok"
    right = hashlib.sha256(b"weights").hexdigest()
    assert right[:12] in found.got
    assert model.model_file(str(tmp_path / "weights.gguf"), right).word == "ok"
    wrong = model.model_file(str(tmp_path / "weights.gguf"), digest)
    assert (wrong.word, digest[:12] in wrong.got) == ("fail", True)


def test_a_model_that_is_not_there(tmp_path):
    found = model.model_file(str(tmp_path / "gone.gguf"), None)
    assert (found.word, "gone.gguf" in found.got, "--experiment" in found.advice) == ("fail", True, True)


def test_what_a_run_says_of_its_base(tmp_path):
    (tmp_path / "experiment.yaml").write_text("model: {_target_: x, source: some/model}\n")
    assert model.facts_of(tmp_path / "experiment.yaml") == ("some/model", None)
    (tmp_path / "environment.json").write_text('{"base_sha256": "ab12"}')
    assert model.facts_of(tmp_path / "experiment.yaml") == ("some/model", "ab12")
    (tmp_path / "experiment.yaml").write_text("model: {_target_: tiny}\n")
    assert model.facts_of(tmp_path / "experiment.yaml") == (None, None)
    (tmp_path / "experiment.yaml").write_text("[: }")
    assert model.facts_of(tmp_path / "experiment.yaml") == (None, None)


@pytest.mark.parametrize(
    ("code", "word", "said"),
    [
        ('print(\'{"rung": "tight", "needed_bytes": 700000000}\')', "ok", "700 MB needed: tight"),
        ('print(\'{"rung": null, "needed_bytes": 400000000}\')', "fail", "400 MB needed"),
        ("import sys; sys.exit('no such model')", "fail", "no such model"),
        ("import time; time.sleep(9)", "warn", "not made"),
    ],
)
def test_whether_a_model_fits(code, word, said):
    found = model.fits([sys.executable, "-c", code], 1_000_000_000, 0.5 if "sleep" in code else 20.0)
    assert (found.word, said in found.got) == (word, True), found
