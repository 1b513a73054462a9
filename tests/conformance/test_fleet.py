"""What every fleet keeps, whatever devices it has."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen.devices import Device
from fedgen.stages import Fleet
from tests.conformance.options import build, disturb, options

FLEETS = {name: build("fleet", name) for name in options("fleet")}

each = pytest.mark.parametrize("name", FLEETS)
anywhere = given(
    clients=st.lists(st.text(max_size=4), max_size=12, unique=True), round=st.integers(1, 50), seed=st.integers(0, 99)
)


@each
def test_it_is_a_fleet(name):
    assert isinstance(FLEETS[name], Fleet)


@each
@anywhere
def test_every_client_has_a_device_and_its_width_is_a_share(name, clients, round, seed):
    devices = FLEETS[name].devices(clients, round, seed)
    assert devices.keys() == set(clients)
    assert all(isinstance(device, Device) and 0 <= device.width <= 1 for device in devices.values())


@each
@anywhere
def test_the_arguments_alone_decide(name, clients, round, seed):
    first = FLEETS[name].devices(clients, round, seed)
    disturb()
    before = torch.get_rng_state()
    assert build("fleet", name).devices(clients, round, seed) == first
    assert torch.equal(torch.get_rng_state(), before)


@each
@anywhere
def test_the_order_of_the_clients_does_not_matter(name, clients, round, seed):
    first = FLEETS[name].devices(clients, round, seed)
    for order in (clients[::-1], sorted(clients)):
        devices = FLEETS[name].devices(order, round, seed)
        assert devices == first
        assert list(devices) == list(first)


@each
@anywhere
def test_a_reply_comes_in_in_the_round_of_its_request_or_a_later_one(name, clients, round, seed):
    devices = FLEETS[name].devices(clients, round, seed)
    assert all(type(device.delay) is int and device.delay >= 0 for device in devices.values())
