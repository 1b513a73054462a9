"""Checks that all a device installs comes as a built wheel for 64-bit ARM: no Raspberry Pi should have to compile.

pip resolves ``client.txt`` under the pins of ``constraints.txt`` for the Pythons of Raspberry Pi OS (3.11 in Bookworm,
3.13 in Trixie), without installing anything. Of torch it asks for the processor-only build that ``torch.txt`` names.
Where the configured index lacks that, the rest is resolved with the registry's torch of the same version, what only its
CUDA build brings along is not counted, and the processor-only build is told as not checked (exit 0; with --strict 1).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parent / "constraints.txt"
PYTHONS = ("3.11", "3.13")
OLDEST_GLIBC, NEWEST_GLIBC = 17, 28  # 2.28 is what the wheels of flwr and torch ask for; both releases have a later one
CUDA_ONLY = ("cuda-", "nvidia-", "triton")
WAITS_S = 900


class Unresolved(Exception):
    """pip found no set of wheels; the text is its own last words."""


@dataclass(frozen=True)
class Wheel:
    """One distribution that pip would install.

    Attributes:
        name: As the distribution calls itself.
        version: Its version, with the local part ("+cpu") if there is one.
        file: Name of the file that pip would fetch.
    """

    name: str
    version: str
    file: str


def requirements_of(file: Path) -> list[str]:
    """The requirements of a file of pip, without comments."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [line for line in lines if line]


def platforms(machine: str) -> list[str]:
    """The tags of wheels that a Linux of today takes, as arguments of pip, which does not derive older from newer."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    return [part for tag in [*tags, f"manylinux2014_{machine}"] for part in ("--platform", tag)]


def resolve(requirements: Sequence[str], python: str, machine: str = "aarch64", *, alone: bool = False) -> list[Wheel]:
    """What pip would install for ``requirements`` on that Python and machine; ``alone``: without what they depend on.

    Raises:
        Unresolved: Something has no wheel, or versions contradict each other.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
        command += ["--python-version", python, "--implementation", "cp", *platforms(machine), "--target", folder]
        command += ["--constraint", str(CONSTRAINTS), "--report", str(report), "--quiet"]
        command += [*(["--no-deps"] if alone else []), *requirements]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAITS_S)
        if done.returncode:
            raise Unresolved("\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))[-2000:])
        return wheels_of(json.loads(report.read_text()))


def wheels_of(report: dict[str, list[dict[str, dict[str, str]]]]) -> list[Wheel]:
    """What a report of pip lists."""
    return [
        Wheel(item["metadata"]["name"], item["metadata"]["version"], item["download_info"]["url"].rpartition("/")[2])
        for item in report["install"]
    ]


def processor_build(machine: str = "aarch64", python: str = "3.11") -> bool:
    """Whether the configured index has the build of torch that ``torch.txt`` names."""
    try:
        resolve(requirements_of(HERE / "torch.txt"), python, machine, alone=True)
    except Unresolved:
        return False
    return True


def any_build() -> str:
    """The requirement of ``torch.txt`` without "+cpu": the same version in whatever build the index has."""
    (wanted,) = requirements_of(HERE / "torch.txt")
    return wanted.partition("+")[0]


def check(python: str) -> bool:
    """Prints what was found for one Python and returns whether the processor-only torch was among it.

    Raises:
        Unresolved: A device could not install this.
    """
    found = processor_build(python=python)
    torch = requirements_of(HERE / "torch.txt") if found else [any_build()]
    wheels = resolve([*requirements_of(HERE / "client.txt"), *torch], python)
    built = [wheel for wheel in wheels if wheel.file.endswith(".whl")]
    if len(built) < len(wheels):
        raise Unresolved(f"not wheels: {', '.join(wheel.file for wheel in wheels if wheel not in built)}")
    cuda = [wheel for wheel in built if wheel.name.startswith(CUDA_ONLY)]
    if found and cuda:
        raise Unresolved(f"the processor-only torch brings {', '.join(wheel.name for wheel in cuda)} along")
    own = sum("aarch64" in wheel.file for wheel in built if wheel not in cuda)
    print(f"python {python}: {len(built) - len(cuda)} wheels, {own} built for aarch64 and the others for any machine")
    if not found:
        (wanted,) = requirements_of(HERE / "torch.txt")
        print(f"  not checked: {wanted}, which this pip's index does not have; PyTorch's own CPU index is its place.")
        print(f"  The registry's {any_build()} is a CUDA build: {len(cuda)} more packages, of no use on a device.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks every Python of Raspberry Pi OS and returns the exit code."""
    parser = argparse.ArgumentParser(description="Does all that a device installs come as wheels for 64-bit ARM?")
    parser.add_argument(
        "--strict", action="store_true", help="fail where the processor-only torch could not be checked"
    )
    given = parser.parse_args(arguments)
    try:
        found = [check(python) for python in PYTHONS]
    except Unresolved as problem:
        print(f"a device could not install this: {problem}", file=sys.stderr)
        return 1
    return 1 if given.strict and not all(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
