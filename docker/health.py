"""Says whether a container does its work: exit 0 if so, else 1 and what is missing. It needs only the standard library.

``health.py port 8443``: something on this machine takes connections there. ``health.py process NAME …``: for each name
a process lives whose command has it as a word, or as the last part of one.
"""

import socket
import sys
from pathlib import Path

PATIENCE_S = 5.0


def answers(port: int) -> bool:
    """Whether a connection to ``port`` on loopback is taken."""
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
    except OSError:
        return False
    return True


def words_of(process: Path) -> list[str]:
    """The command of a process of /proc; empty for one that has ended, is a zombie, or belongs to the kernel."""
    try:
        return process.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def missing(names: list[str], proc: Path = Path("/proc")) -> list[str]:
    """Those of ``names`` that no living process of ``proc`` has. A check, which is told all of them, does not count."""
    seen: set[str] = set()
    for process in proc.glob("[0-9]*"):
        words = words_of(process)
        if Path(__file__).name not in {Path(word).name for word in words}:
            seen.update(words, (Path(word).name for word in words))
    return [name for name in names if name not in seen]


def main(arguments: list[str]) -> int:
    """Carries out one check and returns the exit code."""
    kind, *names = arguments
    if kind == "port":
        silent = [name for name in names if not answers(int(name))]
    elif kind == "process":
        silent = missing(names)
    else:
        raise SystemExit(f"health.py checks a port or a process, not {kind!r}")
    if silent:
        print(f"no {kind} {', '.join(silent)}")
    return 1 if silent else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
