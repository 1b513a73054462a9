"""What Flower's processes are told by their environment."""

import os
import shutil
import sys
from pathlib import Path

from fedgen.federation.shield import quiet_environment


def test_flower_tells_nobody_fetches_nothing_and_finds_this_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.chdir(tmp_path)
    found = quiet_environment(Path("flwr"))
    assert found["FLWR_TELEMETRY_ENABLED"] == found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert found["FLWR_HOME"] == str(tmp_path / "flwr")
    assert found["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert shutil.which("flower-supernode", path=found["PATH"])


def test_how_often_flower_asks_for_work_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.delenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", raising=False)
    assert 0 < float(quiet_environment(tmp_path)["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]) < 1
    monkeypatch.setenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.1")
    assert quiet_environment(tmp_path)["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] == "0.1"
