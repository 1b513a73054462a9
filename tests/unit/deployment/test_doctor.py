"""The doctor as a whole: which questions go with which place, and that none of them stops the others."""

import json
import subprocess
import sys
import time

import pytest

from fedgen.cli import fits
from fedgen.cli.main import main
from fedgen.deployment import doctor
from fedgen.deployment.address import Address
from fedgen.deployment.bundle import Bundle
from fedgen.deployment.finding import Finding, worst
from fedgen.deployment.provision import provision
from fedgen.errors import ConfigError
from tests.unit.deployment.server_double import serving

ALWAYS = ["python", "flwr", "torch", "memory", "swap", "memory cgroup", "disk", "heat and power", "fedgen"]


@pytest.fixture
def home(tmp_path):
    return provision(tmp_path / "home", "127.0.0.1:8443", ["kitchen"]).home


@pytest.fixture
def quick(monkeypatch):
    """Torch is asked in one test; a process that imports it takes seconds."""
    monkeypatch.setattr(doctor.software, "torch", lambda: Finding("torch", "ok", ""))


def told(findings):
    return {finding.probe: finding.word for finding in findings}


@pytest.mark.usefixtures("quick")
def test_a_machine_that_is_nothing_yet():
    kind, findings = doctor.examine(None)
    assert kind == "machine"
    assert list(told(findings)) == [*ALWAYS, "base model"]


def test_a_device_whose_server_is_an_hour_off(home, capsys):
    """The whole way: real bundle, real certificate, real socket; only the server's clock is wrong."""
    with serving(home, 3600) as port:
        given = Bundle.open(home.bundle("kitchen"))
        Bundle(given.path, Address("127.0.0.1", port), given.client, given.fedgen).save()
        began = time.monotonic()
        assert main(["doctor", str(given.path), "--json"]) == 1
        assert time.monotonic() - began < 30
    answer = json.loads(capsys.readouterr().out)
    found = {finding["probe"]: finding for finding in answer["findings"]}
    assert (answer["kind"], answer["ok"]) == ("device", False)
    assert [name for name, finding in found.items() if finding["word"] == "fail"] == ["clock", "admission"]
    assert "clock" in found["admission"]["got"]
    assert "60 min behind" in found["clock"]["got"]
    assert "set-ntp" in found["clock"]["advice"]
    assert found["certificate"]["word"] == found["server"]["word"] == found["device key"]["word"] == "ok"
    assert set(found["clock"]) == {"probe", "word", "got", "advice"}


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_not_started_is_no_failure(home):
    kind, findings = doctor.examine(home.path)
    words = told(findings)
    assert kind == "server"
    assert (words["certificate"], words["server"], words["devices"]) == ("ok", "warn", "warn")
    assert worst(findings) == "warn"


@pytest.mark.usefixtures("quick")
def test_a_bundle_that_others_may_read(home, capsys):
    (home.bundle("kitchen") / "node.key").chmod(0o644)
    assert main(["doctor", str(home.bundle("kitchen"))]) == 1
    printed = capsys.readouterr().out
    assert "chmod 600" in " ".join(printed.split())
    assert "will not work until 1 of these is mended" in " ".join(printed.split())


def test_a_place_that_is_neither(tmp_path):
    with pytest.raises(ConfigError, match="neither a server's home"):
        doctor.examine(tmp_path)
    with pytest.raises(ConfigError, match="no experiment at"):
        doctor.examine(None, [], tmp_path)


@pytest.mark.usefixtures("quick")
def test_an_experiment_is_planned_with_what_is_free(tmp_path):
    code = 'import json, sys; print(json.dumps({"rung": sys.argv[1], "needed_bytes": 1}))'
    (tmp_path / "experiment.yaml").write_text("model: {_target_: fedgen.model.tiny.Tiny}\n")
    _, findings = doctor.examine(None, [sys.executable, "-c", code], tmp_path)
    plan = next(finding for finding in findings if finding.probe == "memory plan")
    assert plan.word == "ok"
    assert str(tmp_path / "experiment.yaml") in plan.got
    assert "base model" not in told(findings), "a model without a source has no file"


@pytest.fixture
def experiment(tmp_path, capsys):
    """What `fedgen train` would write."""
    assert main(["train", "model=tiny", "data=synthetic", "partition=by_owner", "--cfg", "job"]) == 0
    (tmp_path / "experiment.yaml").write_text(capsys.readouterr().out)
    return tmp_path / "experiment.yaml"


def test_the_command_that_plans(experiment, capsys):
    """What the verb starts as a process, here in this one."""
    assert fits.main(experiment, 2_000_000_000) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rung"] == "as configured"
    assert 100_000_000 < told["needed_bytes"] <= 2_000_000_000


@pytest.mark.slow
def test_where_nothing_fits_the_least_is_told(experiment, capsys):
    assert fits.main(experiment, 50_000_000) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rung"] is None
    assert told["needed_bytes"] > 50_000_000


def test_what_cannot_be_planned_is_said(tmp_path, capsys):
    (tmp_path / "experiment.yaml").write_text("model: {}\n")
    assert fits.main(tmp_path / "experiment.yaml", 1) == 2
    assert "experiment.yaml" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_one_probe_that_falls_does_not_stop_the_others(monkeypatch):
    def falls():
        raise PermissionError("not for you")

    monkeypatch.setattr(doctor.machine, "swap", falls)
    _, findings = doctor.examine(None)
    assert len(findings) == len(ALWAYS) + 1
    fallen = next(finding for finding in findings if finding.probe == "swap")
    assert (fallen.word, "not for you" in fallen.got) == ("warn", True)


def test_the_doctor_itself_imports_no_torch():
    code = "import sys; import fedgen.deployment.doctor; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
