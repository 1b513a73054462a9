"""``fedgen provision``, ``fedgen server``, ``fedgen client``: a federation on devices, from keys to processes."""

import argparse
from pathlib import Path


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verbs to the command line."""
    provision = verbs.add_parser("provision", help="make a server's home and a bundle for each device, or change them")
    provision.add_argument("home", type=Path, metavar="HOME", help="the server's folder; a new one must be empty")
    provision.add_argument(
        "--server", metavar="HOST:PORT", help="where devices reach the server; needed the first time"
    )
    provision.add_argument(
        "--device", action="append", default=[], metavar="NAME", help="a device to add; give it once for each"
    )
    provision.add_argument(
        "--revoke", action="append", default=[], metavar="NAME", help="a device to take out: its key is refused at once"
    )
    provision.set_defaults(carry_out=_provision)
    server = verbs.add_parser("server", help="run the server of a home until SIGTERM")
    server.add_argument("home", type=Path, metavar="HOME", help="the folder that fedgen provision made")
    server.add_argument(
        "--listen", metavar="HOST:PORT", help="where to listen, if not at the home's own port everywhere"
    )
    server.set_defaults(carry_out=_server)
    client = verbs.add_parser("client", help="take part with this device until SIGTERM")
    client.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder from this device's tar")
    client.add_argument("--data", type=Path, metavar="FOLDER", help="this device's examples, if not where the run says")
    client.add_argument(
        "--state", type=Path, metavar="FOLDER", help="for logs and what lasts; BUNDLE/state if not given"
    )
    client.add_argument(
        "--turn-limit", type=int, default=3600, metavar="SECONDS", help="a turn that takes longer is given up (3600)"
    )
    client.add_argument("--threads", type=int, default=1, metavar="N", help="cores that training may use (1)")
    client.set_defaults(carry_out=_client)


def _provision(given: argparse.Namespace) -> int:
    from fedgen.deployment.provision import provision

    outcome = provision(given.home, given.server, given.device, given.revoke)
    home = outcome.home
    print(f"{home.path}: {len(home.devices)} devices, server {home.server}")
    for tar in outcome.bundles:
        print(f"  {tar}    for {tar.stem}: unpack it there, then fedgen client {tar.stem}")
    if outcome.bundles:
        print("Each tar holds its device's key: carry it safely (scp), and to that device only.")
    for name in outcome.revoked:
        print(f"  {name} is revoked: a server that runs refuses it from now on")
    if outcome.renewed:
        print("The server has a new certificate: start fedgen server again if it runs.")
    return 0


def _server(given: argparse.Namespace) -> int:
    from fedgen.deployment.address import address_of
    from fedgen.deployment.server import serve

    serve(given.home, None if given.listen is None else address_of(given.listen))
    return 0


def _client(given: argparse.Namespace) -> int:
    from fedgen.deployment.client import Ways, join
    from fedgen.errors import ConfigError

    try:
        ways = Ways(given.data, given.state, given.turn_limit, given.threads)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    join(given.bundle, ways)
    return 0
