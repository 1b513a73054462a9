"""Builds the images without a container engine, and runs a command of fedgen in each: ``make images``.

buildah builds the unchanged Dockerfile with ``--isolation chroot``, as root. A base image is made from Debian's
packages; --pull takes the one that the Dockerfile names from its registry instead. A foreign machine's image is built
and run under qemu-user, on the core of a Raspberry Pi. pip's configuration is lent to the build.
"""

import argparse
import configparser
import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from check_wheels import any_build, processor_build

ROOT = Path(__file__).parents[1]
IMAGES = ("server:amd64", "client:amd64", "client:arm64")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
NUM_CORES = 2
# torch reads these at import, and crashes on what a kernel of another machine says: a Raspberry Pi 4's.
CORE = """processor\t: {core}
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
MIDR = "0x00000000410fd083\n"
NEEDS = {"buildah": "buildah", "debootstrap": "debootstrap"}
INCLUDED = "python3,python3-venv"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
RULES = Path("/usr/lib/binfmt.d")


def run(*command: str | Path, show: bool = False) -> str:
    """Runs a command, and returns what it prints unless that is shown; its failure ends everything."""
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, stdout=None if show else subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"{done.stdout or ''}\n{command[0]} failed with {done.returncode}: {' '.join(map(str, command))}"
        )
    return (done.stdout or "").strip()


def foreign(architecture: str) -> bool:
    """Whether this machine needs qemu for programs of ``architecture``."""
    return platform.machine() != MACHINES[architecture]


@contextlib.contextmanager
def emulated(architecture: str) -> Iterator[None]:
    """Lets programs of a foreign machine run while it is entered; takes back what it had to set up for that.

    Raises:
        SystemExit: qemu's rule for the machine is not installed.
    """
    name = f"qemu-{MACHINES[architecture]}"
    if not foreign(architecture) or (BINFMT / name).exists():
        yield
        return
    rule = RULES / f"{name}.conf"
    if not rule.exists():
        raise SystemExit(f"{rule} is not there; apt-get install qemu-user-static")
    mounted = (BINFMT / "register").exists()
    if not mounted:
        run("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT)
    try:
        # The kernel opens the emulator now ("F" among the rule's flags), so that a chroot without it can be entered.
        BINFMT.joinpath("register").write_text(rule.read_text().strip())
        yield
    finally:
        BINFMT.joinpath(name).write_text("-1")
        if not mounted:
            run("umount", BINFMT)


def make_base(architecture: str, folder: Path, suite: str) -> str:
    """Makes a base image from Debian's packages, unless that was done before, and returns its name."""
    name = f"localhost/fedgen-base:{architecture}"
    if run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").splitlines().count(name):
        return name
    root = folder / f"root-{architecture}"
    if not (root / "usr/bin/python3").exists() or (root / "debootstrap").exists():  # never made, or left half-way
        shutil.rmtree(root, ignore_errors=True)
        stages = ["--foreign"] if foreign(architecture) else []
        run("debootstrap", *stages, "--variant=minbase", f"--include={INCLUDED}", f"--arch={architecture}", suite, root)
        if stages:
            run("chroot", root, "/debootstrap/debootstrap", "--second-stage")
    container = run("buildah", "from", "scratch")
    run("buildah", "add", "--quiet", container, root, "/")
    run("buildah", "config", "--arch", architecture, container)
    run("buildah", "commit", "--quiet", "--rm", container, name)
    shutil.rmtree(root)
    return name


def pip_settings() -> dict[str, str]:
    """What pip is told on this machine by its files and its environment, by key; the environment has the last word."""
    lines = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = [re.fullmatch(r"(global|install|:env:)\.([\w-]+)='(.*)'", line) for line in lines]
    ordered = sorted((pair for pair in pairs if pair), key=lambda pair: pair[1] == ":env:")
    return {pair[2]: pair[3].replace("\\n", "\n") for pair in ordered}


def lend_pip(settings: dict[str, str], file: Path) -> list[str]:
    """Writes pip's settings to ``file`` and returns the arguments that lend it, and the paths it names, to a build."""
    configuration = configparser.RawConfigParser()
    configuration.read_dict({"global": settings})
    with file.open("w") as opened:
        configuration.write(opened)
    words = [word for value in settings.values() for word in value.split()]
    # An index in a folder has its files beside the one with its pages.
    local = [str(Path(word.removeprefix("file://")).parent) if word.startswith("file://") else word for word in words]
    paths = sorted({word for word in local if word.startswith("/") and Path(word).exists()})
    return ["--secret", f"id=pip,src={file}", *(part for path in paths for part in ("--volume", f"{path}:{path}:ro"))]


def settle_torch(architecture: str, given: argparse.Namespace) -> tuple[str | None, str]:
    """What is asked for instead of docker/torch.txt, if anything, and the core that the image is tried on."""
    if given.torch or processor_build(MACHINES[architecture]):
        return given.torch, given.core or "cortex-a72"
    print(
        f"  this pip's index has no processor-only torch for {architecture}: the image gets {any_build()}, with CUDA."
    )
    print("  That is enough to try the image on the core of a Raspberry Pi 5. Its BLAS dies on those of 3 and 4: for")
    print("  devices, build it where pip reaches PyTorch's CPU index.", flush=True)
    return any_build(), given.core or "cortex-a76"


def build(target: str, architecture: str, torch: str | None, given: argparse.Namespace) -> str:
    """Builds one image and returns its name."""
    name = f"localhost/fedgen-{target}:{architecture}"
    # Docker's format, since the other one has no health check; layers, since both images begin with the same packages.
    command = ["buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers"]
    command += ["--file", "docker/Dockerfile", "--target", target, "--tag", name]
    if not given.pull:
        command += ["--pull-never", "--build-arg", f"BASE={make_base(architecture, given.folder, given.suite)}"]
    command += ["--arch", architecture]
    command += ["--build-arg", f"TORCH={torch}"] if torch else []
    with tempfile.TemporaryDirectory() as folder:
        run(*command, *lend_pip(pip_settings(), Path(folder) / "pip.conf"), ".", show=True)
    return name


def pretend_a_board(folder: Path) -> str:
    """Writes what a Raspberry Pi 4 says of its cores, and returns commands that lay it over what this machine says."""
    cores = range(NUM_CORES)
    folder.joinpath("cpuinfo").write_text("".join(CORE.format(core=core) for core in cores))
    for name in ("possible", "present", "online"):
        folder.joinpath("cpu").mkdir(exist_ok=True)
        folder.joinpath("cpu", name).write_text(f"0-{NUM_CORES - 1}\n")
    for core in cores:
        register = folder / f"cpu/cpu{core}/regs/identification/midr_el1"
        register.parent.mkdir(parents=True)
        register.write_text(MIDR)
    over = {"cpuinfo": "/proc/cpuinfo", "cpu": "/sys/devices/system/cpu"}
    return "".join(f"mount --bind {folder / name} {place}; " for name, place in over.items())


def try_out(image: str, architecture: str, core: str, words: Sequence[str]) -> bool:
    """Runs ``fedgen WORDS`` in an image, as the image's own user, and returns whether it was content."""
    container = run("buildah", "from", "--pull-never", image)
    command = ["buildah", "run", "--isolation", "chroot"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            if foreign(architecture):
                # The mounts are seen by this one command and what it starts.
                script = pretend_a_board(Path(folder)) + 'exec "$@"'
                command = ["unshare", "--mount", "sh", "-euc", script, "sh", *command, "--env", f"QEMU_CPU={core}"]
            return subprocess.run([*command, container, "--", "fedgen", *words]).returncode == 0
    finally:
        run("buildah", "rm", container)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds and tries each image, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Build the images with buildah and run fedgen in each.")
    parser.add_argument(
        "images", nargs="*", default=IMAGES, metavar="TARGET:ARCHITECTURE", help=f"of {', '.join(IMAGES)}"
    )
    parser.add_argument(
        "--run", default="doctor", metavar="WORDS", help="what fedgen is told in each image (default doctor)"
    )
    parser.add_argument("--torch", metavar="REQUIREMENT", help="instead of what docker/torch.txt names")
    parser.add_argument(
        "--core", metavar="CORE", help="qemu's name of the foreign core to try on (cortex-a72, a Pi 4's)"
    )
    parser.add_argument("--pull", action="store_true", help="take the base image from its registry")
    parser.add_argument(
        "--suite", default="bookworm", help="Debian release of a base that is made here (default bookworm)"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build", help="where a base is put together (default build/)"
    )
    given = parser.parse_args(arguments)
    if absent := [package for program, package in NEEDS.items() if not shutil.which(program)]:
        raise SystemExit(
            f"make images needs programs that are not installed: apt-get install {' '.join(absent)} qemu-user-static"
        )
    if os.geteuid():
        raise SystemExit("make images changes root folders of other systems: run it as root")
    given.folder.mkdir(parents=True, exist_ok=True)
    content = True
    for target, architecture in (image.split(":") for image in given.images):
        begun = time.monotonic()
        print(f"{target} for {architecture}", flush=True)
        with emulated(architecture):
            torch, core = settle_torch(architecture, given)
            name = build(target, architecture, torch, given)
            size = run("buildah", "images", "--format", "{{.Size}}", name)
            print(f"  {name}: {size}, in {time.monotonic() - begun:.0f} s; fedgen {given.run}:", flush=True)
            content &= try_out(name, architecture, core, given.run.split())
    return 0 if content else 1


if __name__ == "__main__":
    raise SystemExit(main())
