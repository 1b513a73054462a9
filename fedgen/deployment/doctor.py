"""``fedgen doctor``: what is wrong on this machine, be it a server, a device, or one that is to become either.

Probes run side by side, since most of them wait; whatever one of them meets becomes its finding.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from fedgen.deployment import nodes
from fedgen.deployment.bundle import Bundle
from fedgen.deployment.finding import Finding
from fedgen.deployment.home import Home
from fedgen.deployment.probes import keys, link, machine, model, software
from fedgen.errors import ConfigError, FedgenError, RunError

Kind = Literal["server", "device", "machine"]
Probe = Callable[[], Finding]


def examine(place: Path | None, plan: Sequence[str] = (), experiment: Path | None = None) -> tuple[Kind, list[Finding]]:
    """Asks every probe that goes with a place.

    Args:
        place: a server's home or a device's bundle; None for a machine that is neither yet.
        plan: command that plans the experiment's memory, given its file and the bytes that are available
            besides; see ``probes.model.fits``.
        experiment: an experiment.yaml, or the folder of a run; None for no questions about a model of one's own.

    Returns:
        What the place is, and the findings in a fixed order.

    Raises:
        ConfigError: the place is neither, or there is no such experiment.
    """
    file = None if experiment is None else _experiment(experiment)
    kind, probes = _of_place(place)
    probes = {**_of_machine(place), **probes, **_of_model(file, plan)}
    with ThreadPoolExecutor(len(probes)) as pool:
        return kind, list(pool.map(lambda name: _ask(name, probes[name]), probes))


def _of_machine(place: Path | None) -> dict[str, Probe]:
    return {
        "python": software.python,
        "flwr": lambda: software.flower(software.installed("flwr")),
        "torch": software.torch,
        "memory": machine.memory,
        "swap": machine.swap,
        "memory cgroup": machine.memory_limit,
        "disk": lambda: machine.disk(place or Path.cwd()),
        "heat and power": machine.heat,
    }


def _of_place(place: Path | None) -> tuple[Kind, dict[str, Probe]]:
    if place is None:
        return "machine", {"fedgen": lambda: software.own_version(None)}
    if (place / "fleet.json").exists():
        home = Home.open(place)
        server = home.server
        return "server", {
            "fedgen": lambda: software.own_version(None),
            "certificate": lambda: keys.server_certificate(home),
            "server": lambda: link.answers(server.host, server.port, down="warn"),
            "devices": lambda: keys.registered(home.devices, _standing(home)),
        }
    if not (place / "join.json").exists():
        raise ConfigError(
            f"{place} is neither a server's home (no fleet.json) nor a device's bundle (no join.json); "
            "give one of them, or nothing"
        )
    try:
        bundle = Bundle.open(place)
    except ConfigError as error:
        broken = Finding("bundle", "fail", str(error), "do what it says")
        return "device", {"bundle": lambda: broken}
    there = bundle.server
    return "device", {
        "fedgen": lambda: software.own_version(bundle.fedgen),
        "device key": lambda: keys.pair(bundle),
        "CA": lambda: keys.authority(bundle),
        "server": lambda: link.answers(there.host, there.port),
        "certificate": lambda: link.certificate(there.host, there.port, bundle.path / "ca.crt"),
        "clock": lambda: link.clock(bundle),
        "admission": lambda: link.admitted(bundle),
    }


def _of_model(experiment: Path | None, plan: Sequence[str]) -> dict[str, Probe]:
    named, digest = (None, None) if experiment is None else model.facts_of(experiment)
    # A model without files, tiny say, has no source.
    probes: dict[str, Probe] = {}
    if experiment is None or named is not None:
        probes["base model"] = lambda: model.model_file(named, digest)
    free = machine.available_bytes()
    if experiment is not None and plan and free is not None:
        probes["memory plan"] = lambda: model.fits([*plan, str(experiment), str(free)], free)
    return probes


def _standing(home: Home) -> dict[str, str] | None:
    """Device → what the server says of it; None if there is no server to ask."""
    try:
        return {name: node.status for name, node in nodes.listed(home).items()}
    except RunError:
        return None


def _experiment(path: Path) -> Path:
    file = path / "experiment.yaml" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"there is no experiment at {path}; give an experiment.yaml, or the folder of a run")
    return file


def _ask(name: str, probe: Probe) -> Finding:
    try:
        return probe()
    except (OSError, FedgenError) as error:
        return Finding(name, "warn", f"could not be looked at: {error}", "mend that, then ask again")
