"""What is read from a home and a bundle: good files, damaged files, files that others may read."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgen.deployment.address import Address
from fedgen.deployment.bundle import Bundle
from fedgen.deployment.home import Home, check_device_name
from fedgen.deployment.provision import provision
from fedgen.errors import ConfigError, FedgenError

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return provision(tmp_path_factory.mktemp("a") / "home", "127.0.0.1:8443", ["kitchen", "attic-2"]).home.path


@pytest.fixture
def spoil(path):
    """Writes something else into a file of the home, and puts it back afterwards."""
    kept = {}

    def write(name, content):
        file = path / name
        kept.setdefault(file, file.read_bytes())
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    yield write
    for file, content in kept.items():
        file.write_bytes(content)


def test_a_home_is_what_was_saved(path):
    home = Home.open(path)
    assert (home.server, sorted(home.devices)) == (Address("127.0.0.1", 8443), ["attic-2", "kitchen"])
    key = (path / "bundles" / "kitchen" / "node.pub").read_text().strip()
    assert home.devices["kitchen"].public_key == key
    written = json.loads((path / "fleet.json").read_text())
    assert set(written) == {"format", "server", "superlink_port", "devices"}
    assert set(written["devices"]["kitchen"]) == {"public_key", "added"}
    home.save()
    assert Home.open(path) == home


def test_a_bundle_is_what_was_saved(path):
    bundle = Bundle.open(path / "bundles" / "attic-2")
    assert (bundle.server, bundle.client) == (Address("127.0.0.1", 8443), "attic-2")
    assert set(json.loads((bundle.path / "join.json").read_text())) == {"format", "server", "client", "fedgen"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b" " * (4 * 2**20 + 1), "more than"),
        ([], "expected an object"),
        ({}, "format None"),
        ({"format": True}, "format True"),
        ({"format": 2}, "format 2"),
        ({"format": 1}, "'server'"),
        ({"format": 1, "server": "x:1", "superlink_port": True, "devices": {}}, "'superlink_port' should be a number"),
        ({"format": 1, "server": "x:1", "superlink_port": 0, "devices": {}}, "superlink_port 0"),
        ({"format": 1, "server": "x", "superlink_port": 1, "devices": {}}, "HOST:PORT"),
        ({"format": 1, "server": "x:1", "superlink_port": 1, "devices": {"../x": {}}}, "no name for a device"),
        ({"format": 1, "server": "x:1", "superlink_port": 1, "devices": {"a": 1}}, "device a"),
        (
            {"format": 1, "server": "x:1", "superlink_port": 1, "devices": {"a": {"public_key": "-x", "added": ""}}},
            "device a",
        ),
    ],
)
def test_a_damaged_fleet_is_named(path, spoil, content, said):
    spoil("fleet.json", content)
    with pytest.raises(ConfigError, match=said):
        Home.open(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(ANYTHING, st.sampled_from(["server", "superlink_port", "devices", "format", "client", "fedgen", None]))
def test_whatever_the_files_say_is_read_or_refused(path, spoil, value, field):
    for name, open_it in (
        ("fleet.json", lambda: Home.open(path)),
        ("bundles/kitchen/join.json", lambda: Bundle.open(path / "bundles/kitchen")),
    ):
        good = {"format": 1, "server": "x:1", "superlink_port": 1, "devices": {}, "client": "c", "fedgen": "0"}
        spoil(name, value if field is None else {**good, field: value})
        with contextlib.suppress(FedgenError):
            open_it()


@given(st.text(max_size=70))
def test_a_name_stays_inside_its_folder(name):
    try:
        check_device_name(name)
    except ConfigError:
        return
    bundle = Home(Path("home"), Address("x", 1), 1, {}).bundle(name)
    assert os.path.normpath(bundle) == os.path.join("home", "bundles", name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "-a", "a.tar", "küche", "a\n", "a" * 65, "%s", "a b"])
def test_what_is_no_name(name):
    with pytest.raises(ConfigError, match="no name for a device"):
        check_device_name(name)


def test_a_folder_that_is_no_home_or_bundle(tmp_path, path):
    with pytest.raises(ConfigError, match="no home"):
        Home.open(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        Home.open(tmp_path / "x")
    with pytest.raises(ConfigError, match="no bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(ConfigError, match="still packed"):
        Bundle.open(path / "bundles" / "kitchen.tar")


def test_a_key_that_others_may_read_is_refused(path):
    key = path / "bundles" / "kitchen" / "node.key"
    key.chmod(0o640)
    try:
        with pytest.raises(ConfigError, match=r"mode 0640\): chmod 600"):
            Bundle.open(key.parent)
    finally:
        key.chmod(0o600)


def test_a_bundle_without_its_certificate_is_refused(path, spoil):
    spoil("bundles/kitchen/ca.crt", b"-----BEGIN")
    with pytest.raises(ConfigError, match="holds no certificate"):
        Bundle.open(path / "bundles" / "kitchen")
