"""HOST:PORT as people write it, and as they should not."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.deployment.address import Address, address_of
from fedgen.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("fl.example.org:8443", "fl.example.org", 8443),
        ("FL.Example:1", "fl.example", 1),
        ("10.0.0.7:65535", "10.0.0.7", 65535),
        ("[2001:DB8:0::7]:443", "2001:db8::7", 443),
        ("pi_4:8443", "pi_4", 8443),
    ],
)
def test_is_read(text, host, port):
    assert address_of(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fl.example.org",
        "fl.example.org:",
        ":8443",
        "fl.example.org:0",
        "fl.example.org:65536",
        "fl.example.org:84a",
        "fl.example.org:٨٤٤٣",
        "https://fl.example.org:8443",
        "user@fl.example.org:8443",
        "2001:db8::7:443",
        "[2001:db8::7:443",
        "[fl.example.org]:443",
        "10.0.0.256:443",
        "-fl.example.org:443",
        "fl..example.org:443",
        "fl example:443",
        "fl.example.org:443\n",
        "a" * 254 + ":1",
        ("a" * 64) + ".org:1",
    ],
)
def test_is_refused_with_what_was_expected(text):
    with pytest.raises(ConfigError, match=r"xpected HOST:PORT"):
        address_of(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_message(text):
    try:
        address = address_of(text)
    except ConfigError:
        return
    assert address_of(str(address)) == address


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_address_survives_being_written(host, port):
    address = Address(str(host), port)
    assert address_of(str(address)) == address
    assert address.is_loopback == ipaddress.ip_address(host).is_loopback
