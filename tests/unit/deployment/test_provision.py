"""Homes and bundles as they lie on the disk: certificates that verify, keys that fit, modes, renewal, revocation."""

import datetime
import ipaddress
import ssl
import stat
import tarfile

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification

from fedgen.deployment import keys
from fedgen.deployment.bundle import Bundle, pack
from fedgen.deployment.home import Home
from fedgen.deployment.provision import check_certificate, provision
from fedgen.errors import ConfigError


@pytest.fixture
def home(tmp_path):
    return provision(tmp_path / "home", "fl.example:8443", ["kitchen", "attic"]).home


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def accepts(home, name, when=None):
    """Whether cryptography's own verifier, which knows nothing of us, takes the server's certificate for a name."""
    store = verification.Store([x509.load_pem_x509_certificate((home.path / "ca.crt").read_bytes())])
    builder = verification.PolicyBuilder().store(store)
    verifier = builder.time(when or datetime.datetime.now(datetime.UTC)).build_server_verifier(name)
    leaf = x509.load_pem_x509_certificate((home.path / "server.pem").read_bytes())
    try:
        return verifier.verify(leaf, [])[0] == leaf
    except verification.VerificationError:
        return False


def aged(home, days):
    """Gives the home a certificate that ends in so many days."""
    authority = keys.Pair((home.path / "ca.crt").read_bytes(), (home.path / "ca.key").read_bytes())
    pair = keys.new_server(authority, ["fl.example", "127.0.0.1", "localhost"], days)
    (home.path / "server.pem").write_bytes(pair.public)
    (home.path / "server.key").write_bytes(pair.private)


def test_the_certificate_is_for_the_server_and_this_machine(home):
    assert accepts(home, x509.DNSName("fl.example"))
    assert accepts(home, x509.DNSName("localhost"))
    assert accepts(home, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    assert not accepts(home, x509.DNSName("other.example"))
    assert not accepts(
        home, x509.DNSName("fl.example"), datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=826)
    )


def test_the_authority_signs_servers_only(home):
    authority = x509.load_pem_x509_certificate((home.path / "ca.crt").read_bytes())
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert constraints.value.path_length == 0
    leaf = x509.load_pem_x509_certificate((home.path / "server.pem").read_bytes())
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_another_authority_is_not_trusted(home, tmp_path):
    other = provision(tmp_path / "other", "fl.example:8443", []).home
    (home.path / "ca.crt").write_bytes((other.path / "ca.crt").read_bytes())
    assert not accepts(home, x509.DNSName("fl.example"))
    with pytest.raises(ConfigError, match="not signed by"):
        check_certificate(home)


def test_the_standard_library_can_serve_with_it(home):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.path / "server.pem", home.path / "server.key")


def test_each_device_has_a_key_of_its_own_that_fits(home):
    publics = set()
    for name, enrolled in home.devices.items():
        folder = home.bundle(name)
        private = serialization.load_ssh_private_key((folder / "node.key").read_bytes(), password=None)
        assert isinstance(private.curve, ec.SECP384R1)
        public = serialization.load_ssh_public_key((folder / "node.pub").read_bytes())
        assert private.public_key() == public == serialization.load_ssh_public_key(enrolled.public_key.encode())
        assert keys.public_half((folder / "node.key").read_bytes()).decode() == enrolled.public_key
        publics.add(enrolled.public_key)
    assert len(publics) == 2


def test_secrets_are_for_their_owner_alone(home):
    secrets = [home.path / name for name in ("ca.key", "server.key", "superexec.secret")]
    secrets += [*home.path.glob("bundles/*/node.key"), *home.path.glob("bundles/*.tar")]
    assert len(secrets) == 7
    assert {mode(path) for path in secrets} == {0o600}
    folders = [home.path, *(home.path / name for name in ("bundles", "state", "logs", "flwr"))]
    assert {mode(path) for path in folders} == {0o700}


def test_a_tar_unpacks_to_the_bundle(home, tmp_path):
    path = home.path / "bundles" / "kitchen.tar"
    with tarfile.open(path) as tar:
        members = {member.name: (member.mode, member.uid, member.isfile()) for member in tar}
        tar.extractall(tmp_path, filter="data")
    assert members == {
        "kitchen": (0o700, 0, False),
        "kitchen/ca.crt": (0o644, 0, True),
        "kitchen/join.json": (0o644, 0, True),
        "kitchen/node.key": (0o600, 0, True),
        "kitchen/node.pub": (0o644, 0, True),
    }
    bundle = Bundle.open(tmp_path / "kitchen")
    assert (str(bundle.server), bundle.client) == ("fl.example:8443", "kitchen")
    assert b"PRIVATE" not in b"".join((bundle.path / name).read_bytes() for name in ("ca.crt", "join.json", "node.pub"))
    before = path.read_bytes()
    assert pack(home.bundle("kitchen")).read_bytes() == before


def test_devices_are_added_later_and_the_others_stay(home):
    before = {name: (home.bundle(name) / "node.key").read_bytes() for name in home.devices}
    certificate = (home.path / "server.pem").read_bytes()
    outcome = provision(home.path, None, ["attic", "cellar"])
    assert [path.name for path in outcome.bundles] == ["cellar.tar"]
    assert list(outcome.home.devices) == ["kitchen", "attic", "cellar"]
    assert {name: (home.bundle(name) / "node.key").read_bytes() for name in before} == before
    assert (home.path / "server.pem").read_bytes() == certificate
    assert not outcome.renewed


def test_a_revoked_device_is_gone_and_comes_back_with_another_key(home):
    outcome = provision(home.path, None, [], revoke=["attic"])
    assert (outcome.revoked, list(Home.open(home.path).devices)) == (("attic",), ["kitchen"])
    assert not (home.path / "bundles" / "attic").exists()
    assert not (home.path / "bundles" / "attic.tar").exists()
    again = provision(home.path, None, ["attic"]).home
    assert again.devices["attic"].public_key != home.devices["attic"].public_key


def test_a_server_that_moves_gets_a_certificate_and_the_bundles_follow(home):
    (home.path / "bundles" / "attic.tar").unlink()
    outcome = provision(home.path, "10.0.0.7:443", [])
    assert outcome.renewed
    assert accepts(home, x509.IPAddress(ipaddress.ip_address("10.0.0.7")))
    assert {path.name for path in outcome.bundles} == {"kitchen.tar", "attic.tar"}
    assert str(Bundle.open(home.bundle("attic")).server) == "10.0.0.7:443"
    assert provision(home.path, None, []).bundles == ()


def test_a_certificate_is_renewed_before_it_ends(home):
    aged(home, 61)
    assert not provision(home.path, None, []).renewed
    aged(home, 59)
    assert check_certificate(home) == pytest.approx(59, abs=0.01)
    assert provision(home.path, None, []).renewed
    assert check_certificate(home) == pytest.approx(keys.SERVER_DAYS, abs=0.01)


def test_a_certificate_that_has_ended_is_said_so(home):
    aged(home, 0)
    with pytest.raises(ConfigError, match=r"ended 0 days ago: fedgen provision"):
        check_certificate(home)
    provision(home.path, None, [])
    check_certificate(home)


@pytest.mark.parametrize("missing", ["ca.crt", "server.pem", "server.key", "superexec.secret"])
def test_what_is_missing_is_named(home, missing):
    (home.path / missing).unlink()
    with pytest.raises(ConfigError, match=f"there is no .*{missing}"):
        check_certificate(home)


@pytest.mark.parametrize("missing", ["server.pem", "server.key", "superexec.secret", "flwr/config.toml"])
def test_what_is_missing_is_made_again(home, missing):
    (home.path / missing).unlink()
    provision(home.path, None, [])
    assert (home.path / missing).exists()
    check_certificate(home)


def test_an_authority_that_devices_trust_is_never_made_again(home):
    (home.path / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"ca\.crt is missing"):
        provision(home.path, None, [])


def test_the_authoritys_key_may_be_kept_elsewhere_until_it_is_needed(home):
    (home.path / "ca.key").unlink()
    assert list(provision(home.path, None, ["cellar"]).home.devices) == ["kitchen", "attic", "cellar"]
    with pytest.raises(ConfigError, match=r"ca\.key"):
        provision(home.path, "10.0.0.7:443", [])
    assert str(Home.open(home.path).server) == "fl.example:8443"


def test_a_key_of_another_authority_is_noticed(home, tmp_path):
    other = provision(tmp_path / "other", "fl.example:8443", []).home
    (home.path / "ca.key").write_bytes((other.path / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="does not belong"):
        provision(home.path, "10.0.0.7:443", [])


def test_keys_open_to_others_are_refused(home):
    (home.path / "server.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644\): chmod 600"):
        check_certificate(home)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and no home"):
        provision(tmp_path, "fl.example:8443", ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_new_home_needs_an_address_and_bad_names_make_nothing(tmp_path):
    with pytest.raises(ConfigError, match="--server HOST:PORT"):
        provision(tmp_path / "home", None, ["a"])
    with pytest.raises(ConfigError, match="no name for a device"):
        provision(tmp_path / "home", "fl.example:8443", ["a", "../b"])
    assert not (tmp_path / "home").exists()


def test_who_is_not_there_cannot_be_revoked(home):
    with pytest.raises(ConfigError, match="no device cellar to revoke; the devices are: kitchen, attic"):
        provision(home.path, None, [], revoke=["cellar"])
    with pytest.raises(ConfigError, match="in two calls"):
        provision(home.path, None, ["attic"], revoke=["attic"])


def test_flowers_commands_find_the_superlink(home):
    import tomllib

    config = tomllib.loads((home.path / "flwr" / "config.toml").read_text())
    assert config == {
        "superlink": {
            "default": "fedgen",
            "fedgen": {
                "address": f"127.0.0.1:{home.superlink_port}",
                "root-certificates": str(home.path / "ca.crt"),
            },
        }
    }
