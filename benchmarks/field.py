"""Places for a server and some devices on one machine: each with its own network, its own memory and processor time.

Every place is a network namespace; a bridge in the server's joins them, so that nothing of this touches the machine's
own network. Links have a rate (token bucket), and may lose packets (netfilter); a link that is slow has a proxy on its
device that lets every byte wait, since not every kernel can (``slow_link``). Memory and processor time are limited by
control groups (version 1). Linux, and root, are needed; whatever a process that was killed has left behind is removed
by the next.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

HOST, PORT = "server.test", 8443
SERVER = "10.77.0.1"
CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "cpu")
PERIOD_US = 100_000

ENTER = """\
set -e
for group in "$1" "$2"; do echo $$ > "$group/cgroup.procs"; done
namespace=$3 hosts=$4
shift 4
set -- sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$hosts" "$@"
exec nsenter --net="/run/netns/$namespace" unshare --mount "$@"
"""


@dataclass(frozen=True)
class Link:
    """A device, and how it is connected.

    Attributes:
        rate_mbit: megabits per second, each way.
        loss: share of the packets that are lost, each way.
        delay_ms: milliseconds that every byte takes longer, each way.
        memory_mib: memory of all processes of the device.
        cores: processor time of all of them.
    """

    rate_mbit: float = 20.0
    loss: float = 0.0
    delay_ms: int = 0
    memory_mib: int = 1500
    cores: float = 1.0


class Field:
    """The places of a server and its devices.

    Args:
        links: device → how it is connected.
    """

    def __init__(self, links: Mapping[str, Link]) -> None:
        self.links = dict(links)
        self._tag = f"fg{os.getpid()}"
        self._names = {name: f"{self._tag}-{number}" for number, name in enumerate(("server", *links))}
        self._folder = Path(tempfile.mkdtemp(prefix="fedgen-field-"))
        self._proxies: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Field":
        try:
            _sweep()
            self._server()
            for number, name in enumerate(self.links):
                self._device(name, number)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def server(self) -> str:
        """HOST:PORT of the server."""
        return f"{HOST}:{PORT}"

    def words(self, name: str) -> tuple[str, ...]:
        """What stands before a command that is to run at a place.

        Args:
            name: of the device, or `server`.
        """
        groups = [str(self.group(name, controller)) for controller in CONTROLLERS]
        return ("sh", "-c", ENTER, "place", *groups, self._names[name], str(self._hosts(name)))

    def group(self, name: str, controller: str) -> Path:
        """The control group of a place."""
        return CGROUPS / controller / self._names[name]

    def pids(self, name: str) -> list[int]:
        """Numbers of all processes at a place."""
        with contextlib.suppress(FileNotFoundError):
            return [int(line) for line in (self.group(name, "memory") / "cgroup.procs").read_text().split()]
        return []

    def found(self, name: str, word: str) -> list[int]:
        """Numbers of the processes at a place whose command has a word in it."""
        found = []
        for pid in self.pids(name):
            with contextlib.suppress(OSError):
                if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def num_killed(self, name: str) -> int:
        """How many processes of a place were ended because its memory was at an end."""
        text = (self.group(name, "memory") / "memory.oom_control").read_text()
        return int(re.findall(r"oom_kill (\d+)", text)[0])

    def cut(self, name: str, *, up: bool) -> None:
        """Cuts a device off, or connects it again."""
        _run("ip", "-n", self._names[name], "link", "set", "eth0", "up" if up else "down")

    def power_off(self, name: str) -> None:
        """Ends everything at a place at once, and takes it off the network; it gets no chance to say a word."""
        if name != "server":
            self.cut(name, up=False)
        while pids := self.pids(name):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def close(self) -> None:
        """Removes everything."""
        for proxy in self._proxies:
            proxy.kill()
            proxy.wait()
        for name in self._names:
            with contextlib.suppress(OSError, RuntimeError):
                self.power_off(name)
        _remove(self._tag)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _server(self) -> None:
        name = self._place("server")
        _run("ip", "-n", name, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", name, "addr", "add", f"{SERVER}/24", "dev", "br0")
        _run("ip", "-n", name, "link", "set", "br0", "up")

    def _device(self, device: str, number: int) -> None:
        name, there, link = self._place(device), self._names["server"], self.links[device]
        end = f"d{number}"
        _run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", end, "netns", there)
        _run("ip", "-n", there, "link", "set", end, "master", "br0", "up")
        _run("ip", "-n", name, "addr", "add", f"10.77.0.{10 + number}/24", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        for namespace, interface in ((name, "eth0"), (there, end)):
            rate = ("rate", f"{link.rate_mbit:g}mbit", "burst", "64kb", "latency", "400ms")
            _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf", *rate)
        for chain in ("INPUT", "OUTPUT") if link.loss else ():
            lost = ("-m", "statistic", "--mode", "random", "--probability", f"{link.loss:g}", "-j", "DROP")
            path = ("-i", "eth0") if chain == "INPUT" else ("-o", "eth0")
            _run("ip", "netns", "exec", name, "iptables", "-A", chain, *path, *lost)
        (self.group(device, "memory") / "memory.limit_in_bytes").write_text(str(link.memory_mib * 2**20))
        (self.group(device, "cpu") / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (self.group(device, "cpu") / "cpu.cfs_quota_us").write_text(str(int(link.cores * PERIOD_US)))
        if link.delay_ms:
            program = str(Path(__file__).with_name("slow_link.py"))
            command = [sys.executable, program, f"127.0.0.1:{PORT}", f"{SERVER}:{PORT}", str(link.delay_ms)]
            self._proxies.append(subprocess.Popen(["ip", "netns", "exec", name, *command]))

    def _place(self, place: str) -> str:
        name = self._names[place]
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        for controller in CONTROLLERS:
            self.group(place, controller).mkdir()
        near = place == "server" or not self.links[place].delay_ms
        self._hosts(place).write_text(f"127.0.0.1 localhost\n{SERVER if near else '127.0.0.1'} {HOST}\n")
        return name

    def _hosts(self, place: str) -> Path:
        return self._folder / f"hosts-{place}"


def missing() -> str:
    """What this machine lacks for a field; empty if it lacks nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "root on Linux is needed"
    tools = [tool for tool in ("ip", "tc", "iptables", "nsenter", "unshare") if shutil.which(tool) is None]
    groups = [name for name in CONTROLLERS if not (CGROUPS / name / "cgroup.procs").exists()]
    lacks = [f"commands {', '.join(tools)}"] * bool(tools) + [f"control groups (v1) {', '.join(groups)}"] * bool(groups)
    return "; ".join(lacks)


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[None]:
    """A folder that is a disk of its own, and a small one."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(folder))


def _sweep() -> None:
    """Removes the places of processes that are no more."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    tags = {match[1] for match in re.finditer(r"^(fg(\d+))-\d+", listed, re.MULTILINE)}
    for tag in tags:
        if not Path("/proc", tag.removeprefix("fg")).exists():
            _remove(tag)


def _remove(tag: str) -> None:
    """Removes namespaces and control groups, and ends what is still in them."""
    for controller in CONTROLLERS:
        for group in (CGROUPS / controller).glob(f"{tag}-*"):
            end = time.monotonic() + 10.0
            while group.exists() and time.monotonic() < end:
                with contextlib.suppress(OSError):
                    for pid in (group / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.05)
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in re.findall(rf"^({tag}-\d+)", listed, re.MULTILINE):
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
