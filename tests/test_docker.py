"""What carries fedgen to other machines holds together: images, containers, services, the guides' commands."""

import argparse
import ast
import configparser
import importlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from fedgen.cli import main as command_line

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
UNITS = sorted((DOCKER / "systemd").glob("*.service"))
GUIDES = [ROOT / "docs" / "raspberry_pi.md", ROOT / "docs" / "deployment.md"]
COMPOSE = {path.stem: yaml.safe_load(path.read_text()) for path in DOCKER.glob("compose.*.yaml")}
# What a distribution of client.txt is imported as where that is not its own name, and what else comes with it.
IMPORTED_AS = {"pyyaml": ["yaml"], "home-assistant-intents": ["home_assistant_intents"]}
BROUGHT_BY = {
    "flwr": ["cryptography", "h11", "starlette", "uvicorn"],
    "transformers": ["huggingface_hub", "tokenizers"],
}


def pins(file):
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    return dict(line.partition("==")[::2] for line in lines if line)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCKER))
    return importlib.import_module


# What is installed


def test_a_device_gets_the_tested_versions():
    tested = pins(ROOT / "constraints.txt")
    assert pins(DOCKER / "torch.txt") == {"torch": tested["torch"] + "+cpu"}
    wanted = pins(DOCKER / "client.txt")
    assert set(wanted.values()) == {""}, "versions stand in constraints.txt only"
    assert wanted.keys() - tested.keys() == set()


def module_level_imports(module):
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def test_a_device_needs_nothing_that_its_list_lacks():
    names = [*pins(DOCKER / "client.txt"), "torch"]
    there = {"fedgen", *sys.stdlib_module_names}
    for name in names:
        there |= {*IMPORTED_AS.get(name, [name]), *BROUGHT_BY.get(name, [])}
    missing = {
        f"{module.relative_to(ROOT)} imports {name}"
        for module in (ROOT / "fedgen").rglob("*.py")
        if not {"cli", "report"} & set(module.relative_to(ROOT / "fedgen").parts)
        for name in module_level_imports(module)
        if name not in there
    }
    assert missing == set()


def test_a_device_goes_without_hydra_and_ray():
    assert {"hydra-core", "omegaconf", "ray", "matplotlib", "flwr[simulation]"} & pins(
        DOCKER / "client.txt"
    ).keys() == set()


# The images


def instructions(word):
    return [line.split(maxsplit=1)[1] for line in DOCKERFILE.splitlines() if line.startswith(f"{word} ")]


def stages():
    """Stage → its lines, its ancestors' first."""
    found = {}
    for part in re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)[1:]:
        above, name = re.match(r"FROM (\S+) AS (\S+)", part).groups()
        found[name] = found.get(above, []) + part.splitlines()
    return found


@pytest.mark.parametrize("image", ["client", "server"])
def test_an_image_runs_as_nobody_special_and_says_whether_it_is_well(image):
    lines = stages()[image]
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert sum(line.startswith("HEALTHCHECK") for line in lines) == 1
    (told,) = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD")]
    (unit,) = [path for path in UNITS if path.stem == f"fedgen-{image}"]
    assert told[0] == image == unit_of(unit)["Service"]["ExecStart"].split()[1]
    # What builds stays behind: the final stage is not made of the one with the sources.
    assert not any(line.startswith("RUN") and "pip" in line for line in lines)


def test_only_what_the_images_are_made_of_reaches_a_build():
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    let_in = {line[1:] for line in rest if line.startswith("!")}
    copied = {source for line in instructions("COPY") if not line.startswith("--from") for source in line.split()[:-1]}
    assert let_in == copied
    assert all((ROOT / source).exists() for source in copied)


def test_pip_is_configured_by_a_loan_and_layers_hold_no_secret():
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert len(installs) == 4
    assert all(line.startswith("--mount=type=secret,id=pip,target=/etc/pip.conf ") for line in installs)
    declared = " ".join([*instructions("ARG"), *instructions("ENV")])
    assert re.findall(r"(?i)\w*(?:token|password|secret|credential|_key)\w*", declared) == []


def test_no_address_of_a_registry_is_in_any_file():
    files = [path for path in DOCKER.rglob("*") if path.is_file() and path.suffix != ".pyc"] + GUIDES
    assert [path.name for path in files if re.search(r"https?://|pypi\.|download\.pytorch", path.read_text())] == []


def test_the_base_is_named_in_full():
    assert any(re.fullmatch(r"BASE=docker\.io/library/python:3\.11-[a-z-]+", line) for line in instructions("ARG"))


# Containers


def services():
    return [(file, name, service) for file, content in COMPOSE.items() for name, service in content["services"].items()]


def test_containers_are_one_server_and_three_devices():
    assert sorted(name for _, name, _ in services()) == ["device-1", "device-2", "device-3", "server"]
    assert all(service["build"]["target"] in stages() for _, _, service in services())


@pytest.mark.parametrize(("file", "name", "service"), services())
def test_a_container_may_do_little(file, name, service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\$\{\w+:-\d+[mg]\}", service["mem_limit"])
    assert service["user"].startswith("${FEDGEN_UID:-10001}")
    assert {"privileged", "network_mode", "cap_add", "pid", "environment"} & service.keys() == set()
    assert ("ports" in service) == (name == "server"), "a device only dials out"


def test_a_bundle_is_read_only_and_its_own():
    bundles = [volume for _, name, service in services() if name != "server" for volume in service["volumes"][:1]]
    assert all(volume.endswith(":/bundle:ro") for volume in bundles)
    assert len(set(bundles)) == 3


# Services


def unit_of(path):
    parser = configparser.RawConfigParser(strict=False, delimiters=["="])
    parser.optionxform = str
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_service_comes_back_and_may_do_little(path):
    unit = unit_of(path)
    service = dict(unit["Service"])
    assert "time-sync.target" in unit["Unit"]["After"].split()
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    expected = {
        "Restart": "always",
        "RestartSec": "10",
        "KillMode": "control-group",
        "User": "fedgen",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "MemoryMax": "80%",
        "OOMPolicy": "continue",
    }
    assert {key: service.get(key) for key in expected} == expected
    assert "ProcSubset" not in service, "the planner reads /proc/meminfo"


def test_the_installer_puts_things_where_the_service_looks():
    text = (DOCKER / "systemd" / "install_client.sh").read_text()
    service = unit_of(DOCKER / "systemd" / "fedgen-client.service")["Service"]
    places = dict(re.findall(r"^\w+=\$\{(\w+):-(/\S+)\}$", text, re.MULTILINE))
    assert places == {"PREFIX": "/opt/fedgen", "CONFIG": "/etc/fedgen", "STATE": "/var/lib/fedgen"}
    program, _, bundle, _, state, more = service["ExecStart"].split()
    assert program == f"{places['PREFIX']}/bin/fedgen"
    assert bundle == f"{places['CONFIG']}/client"
    assert (state, more) == (f"{places['STATE']}/state", "$FEDGEN_ARGUMENTS")
    assert service["WorkingDirectory"] == places["STATE"]


@pytest.fixture
def install(tmp_path):
    """The installer as somebody who is not root, with a Python that only writes down what it is asked for."""
    asked = tmp_path / "asked"
    python = tmp_path / "prefix" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {asked}\n')
    python.chmod(0o755)
    (tmp_path / "bin").mkdir()
    for name, answer in (("id", "1000"), ("uname", "aarch64")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    places = {"PREFIX": "prefix", "CONFIG": "config", "STATE": "state"}
    environment = os.environ | {key: str(tmp_path / folder) for key, folder in places.items()}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": str(python)}

    def run(bundle, **more):
        command = ["sh", DOCKER / "systemd" / "install_client.sh", bundle]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True)
        return done, asked.read_text().splitlines() if asked.exists() else []

    return run


def bundle_in(folder, name):
    source = folder / name
    source.mkdir()
    for file in ("join.json", "node.key"):
        (source / file).write_text(file)
    (source / "node.key").chmod(0o600)
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        tar.add(source, arcname=name)
    return folder / f"{name}.tar"


def test_the_installer_installs_what_was_tested_and_unpacks_the_bundle(install, tmp_path):
    done, asked = install(bundle_in(tmp_path, "pi-one"))
    assert done.returncode == 0, done.stderr
    installs = [line for line in asked if "pip install" in line]
    assert len(installs) == 4
    assert all(f"--constraint {ROOT / 'constraints.txt'}" in line for line in installs)
    assert f"--requirement={DOCKER / 'torch.txt'}" in installs[0]
    assert str(DOCKER / "client.txt") in installs[1]
    assert installs[3].endswith(f"--no-deps {ROOT}")
    key = tmp_path / "config" / "client" / "node.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert f"fedgen client {tmp_path / 'config' / 'client'}" in done.stdout

    done, _ = install(bundle_in(tmp_path, "pi-two"))
    assert done.returncode == 0, "a second time, with another bundle"
    assert not (tmp_path / "config" / "client" / "pi-one").exists()


def test_the_installer_refuses_before_it_touches_anything(install, tmp_path):
    (tmp_path / "text").write_text("no tar")
    done, asked = install(tmp_path / "text")
    assert (done.returncode, asked) == (1, [])
    assert "is no tar" in done.stderr
    done, asked = install(bundle_in(tmp_path, "pi-one"), PREFIX="")
    assert (done.returncode, asked) == (1, [])
    assert "sudo" in done.stderr


# The guides


def blocks(guide):
    return [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", guide.read_text(), re.DOTALL)]


def fedgen_commands():
    lines = [shlex.split(line, comments=True) for guide in GUIDES for block in blocks(guide) for line in block]
    found = [" ".join(words) for words in lines if words[:1] in (["fedgen"], ["sudo"], ["docker"])]
    found += re.findall(r"`(fedgen [^`]*)`", "\n".join(guide.read_text() for guide in GUIDES))
    told = [
        re.fullmatch(
            r"(?:fedgen|sudo -u fedgen (?:/opt/fedgen/bin/)?fedgen|docker compose .* exec \w+ fedgen)\s([^-].*)", text
        )
        for text in found
    ]
    return [match[1].split() for match in told if match]


def test_a_blank_card_takes_eight_commands():
    numbers = re.findall(r"#\s*(\d+)$", "\n".join(line for block in blocks(GUIDES[0]) for line in block), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 9)]


def test_the_guide_names_the_torch_that_is_installed():
    (name, version), *_ = pins(DOCKER / "torch.txt").items()
    assert f"`{name}=={version}`" in GUIDES[0].read_text()


def test_the_guides_commands_are_those_of_fedgen(monkeypatch):
    def refuse(parser, message):
        raise AssertionError(f"{parser.prog}: {message}")

    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    started = [unit_of(path)["Service"]["ExecStart"].split()[1:] for path in UNITS]
    started += [json.loads(line) for line in instructions("CMD")]
    commands = fedgen_commands() + [[word for word in words if not word.startswith("$")] for words in started]
    assert {"provision", "server", "client", "doctor", "status"} <= {words[0] for words in commands}
    for words in commands:
        if words[0] != "train":
            command_line._parser().parse_args(words)


# The scripts


def test_health_of_a_port(script):
    health = script("health")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert health.main(["port", port]) == 0
    assert health.main(["port", port]) == 1


def test_health_of_a_process(script, capsys):
    health = script("health")
    names = ["fedgen.is.well", "flower-is-well"]
    command = [sys.executable, "-c", "input()", names[0], f"/somewhere/{names[1]}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        while names[0] not in Path(f"/proc/{process.pid}/cmdline").read_text():
            pass
        assert health.main(["process", *names]) == 0
        # The check is told the names of what it looks for, and must not find itself.
        check = subprocess.run([sys.executable, DOCKER / "health.py", "process", "fedgen.is.absent"])
        assert check.returncode == 1
        process.communicate()
    assert health.main(["process", *names]) == 1
    assert names[1] in capsys.readouterr().out


def test_wheels_are_told_from_what_must_be_compiled(script, monkeypatch, capsys):
    wheels = script("check_wheels")
    assert wheels.any_build() == "torch==" + pins(ROOT / "constraints.txt")["torch"]
    made = {"url": "https://host/numpy-1-cp311-cp311-manylinux_2_28_aarch64.whl"}
    report = {"install": [{"metadata": {"name": "numpy", "version": "1"}, "download_info": made}]}
    assert wheels.wheels_of(report) == [wheels.Wheel("numpy", "1", "numpy-1-cp311-cp311-manylinux_2_28_aarch64.whl")]

    found = [
        wheels.Wheel("numpy", "1", "numpy-1-aarch64.whl"),
        wheels.Wheel("nvidia-nccl-cu13", "2", "nccl-aarch64.whl"),
    ]
    monkeypatch.setattr(wheels, "resolve", lambda *_, **__: found)
    with pytest.raises(wheels.Unresolved, match="nvidia-nccl-cu13"):
        wheels.check("3.11")
    monkeypatch.setattr(wheels, "processor_build", lambda **_: False)
    assert wheels.check("3.11") is False
    assert "1 wheels, 1 built for aarch64" in capsys.readouterr().out
    monkeypatch.setattr(wheels, "resolve", lambda *_, **__: [wheels.Wheel("x", "1", "x-1.tar.gz")])
    with pytest.raises(wheels.Unresolved, match=r"x-1\.tar\.gz"):
        wheels.check("3.11")


def test_builds_are_lent_the_configuration_of_pip(script, tmp_path):
    images = script("build_images")
    assert {image.partition(":")[0] for image in images.IMAGES} == {"server", "client"}
    index = tmp_path / "index" / "simple"
    index.mkdir(parents=True)
    settings = {"extra-index-url": f"file://{index}", "find-links": str(tmp_path / "gone"), "timeout": "9"}
    arguments = images.lend_pip(settings, tmp_path / "pip.conf")
    assert arguments == [
        *("--secret", f"id=pip,src={tmp_path / 'pip.conf'}"),
        *("--volume", f"{index.parent}:{index.parent}:ro"),
    ]
    read = configparser.RawConfigParser()
    read.read(tmp_path / "pip.conf")
    assert dict(read["global"]) == settings
