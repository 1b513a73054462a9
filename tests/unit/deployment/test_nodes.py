"""The list that Flower's command prints, as devices."""

import json

import pytest

from fedgen.deployment import nodes
from fedgen.deployment.provision import provision
from fedgen.errors import RunError


def entry(number, status, **moments):
    return {"node-id": number, "owner-name": "x", "status": status, "online-at": "N/A", "offline-at": "N/A", **moments}


def test_nodes_get_the_names_under_which_they_were_registered():
    told = [
        entry("11", "online", **{"online-at": "2026-11-25 22:00:00Z"}),
        entry("12", "offline", **{"offline-at": "2026-11-25 22:00:00Z"}),
        entry("13", "registered"),
        entry("14", "unregistered"),
        entry("15", "online"),
    ]
    printed = "Listing all nodes...\n" + json.dumps({"success": True, "nodes": told})
    found = nodes.of(printed, {"11": "a", "12": "b", "13": "c", "14": "d"})
    moment = 1795644000.0
    assert found == {
        "a": nodes.Node("online", moment),
        "b": nodes.Node("offline", moment),
        "c": nodes.Node("registered", None),
    }


@pytest.mark.parametrize(
    "printed", ["", "Traceback", "[]", "{}", '{"success": false, "error-message": "down"}', '{"success": true}']
)
def test_what_is_no_list_is_said(printed):
    with pytest.raises(RunError, match="does not list"):
        nodes.of(printed, {})


def test_nobody_is_asked_where_no_server_runs(tmp_path):
    home = provision(tmp_path / "home", "127.0.0.1:8443", ["a"]).home
    with pytest.raises(RunError, match="no server"):
        nodes.listed(home)
