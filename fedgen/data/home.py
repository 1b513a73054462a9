"""One simulated household: its rooms, floors and devices, drawn from the inventory of its language."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from fedgen.data.inventories import Inventory
from fedgen.errors import DataError

NUM_FLOORS = 2


@dataclass(frozen=True)
class Device:
    """A thing that can be spoken to.

    Attributes:
        name: what the people of the home call it.
        domain: what Home Assistant takes it for (``light``, ``cover``, ...).
    """

    name: str
    domain: str


@dataclass(frozen=True)
class Home:
    """A household.

    Attributes:
        name: who it is, and the owner of its examples.
        language: what is spoken there.
        areas: its rooms.
        floors: its storeys.
        devices: its devices.
    """

    name: str
    language: str
    areas: tuple[str, ...]
    floors: tuple[str, ...]
    devices: tuple[Device, ...]


def draw_devices(
    inventory: Inventory, num_devices: int, needed: Sequence[frozenset[str]], rng: Random
) -> tuple[Device, ...]:
    """Devices of one home: first what its commands need, then anything.

    Args:
        inventory: what to choose from.
        num_devices: how many.
        needed: sets of domains; of each set the home gets at least one device, as far as the inventory has any.
        rng: where the draws come from.

    Raises:
        DataError: the needed devices alone are more than num_devices.
    """
    pool = [Device(name, domain) for domain, names in inventory.devices.items() for name in names]
    rng.shuffle(pool)
    chosen: list[Device] = []
    for domains in sorted(needed, key=lambda domains: (len(domains), sorted(domains))):
        fitting = [device for device in pool if device.domain in domains]
        if fitting and not any(device.domain in domains for device in chosen):
            chosen.append(fitting[0])
    if len(chosen) > num_devices:
        kinds = ", ".join(device.domain for device in chosen)
        raise DataError(
            f"num_devices is {num_devices}, but the intents need {len(chosen)} devices, one of each kind ({kinds}); "
            "raise num_devices or name fewer intents"
        )
    rest = [device for device in pool if device not in chosen]
    return tuple(chosen + rest[: num_devices - len(chosen)])


def draw_home(
    name: str,
    language: str,
    inventory: Inventory,
    *,
    num_areas: int,
    devices: tuple[Device, ...],
    rng: Random,
) -> Home:
    """A home with these devices, and with rooms and floors of its own."""
    areas = tuple(rng.sample(inventory.areas, num_areas))
    floors = tuple(rng.sample(inventory.floors, NUM_FLOORS))
    return Home(name, language, areas, floors, devices)
