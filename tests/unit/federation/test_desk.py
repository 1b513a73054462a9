"""What a device keeps between rounds, and that it answers as one process would."""

import dataclasses
import json

import pytest
import torch

from fedgen.config.check import build
from fedgen.devices import Rung
from fedgen.errors import ClientError, DataError
from fedgen.experiment import Experiment
from fedgen.federation import desk, packing
from fedgen.federation.desk import Desk, Place, deal
from fedgen.federation.letter import Letter
from fedgen.model.tiny import Tiny
from tests.unit.federation.devices import Here, experiment_text, same

WAYS = {
    "whole": ((), {}),
    "rolling": (("extraction=rolling",), {"width": 0.5}),
    "random": (("extraction=random",), {"width": 0.5}),
    "ordered": (("extraction=ordered",), {"width": 0.6}),
    "importance": (("extraction=importance",), {}),
    "planned": (("fleet=raspberry_pi",), {"rung": Rung("checkpointing", checkpointing=True, micro_batch=2)}),
    "zeroth order": (("wire=seeds", "fleet=raspberry_pi"), {"rung": Rung("light", light=True, tight=True)}),
}


@pytest.fixture(autouse=True)
def fresh():
    desk._desk.cache_clear()


def sent(here, request):
    """A request as it arrives on a device."""
    return packing.open_request(packing.pack_request(request, here.clients))


@pytest.mark.parametrize("way", WAYS)
def test_a_device_answers_as_one_process_would(way):
    overrides, fields = WAYS[way]
    text = experiment_text(*overrides)
    here = Here(text, plans="fleet=raspberry_pi" in overrides)
    client = here.clients[1]
    there = Desk(build(json.loads(text)), client)
    for round in (1, 2):
        request = here.request(client, round, **fields)
        assert same(there.answer(*sent(here, request))) == same(here.answer(request))


@pytest.mark.parametrize("way", ["whole", "rolling", "importance", "planned"])
def test_a_device_measures_as_one_process_would(way):
    overrides, fields = WAYS[way]
    text = experiment_text(*overrides)
    here = Here(text, plans="fleet=raspberry_pi" in overrides)
    client = here.clients[1]
    request = dataclasses.replace(here.request(client, 1, **fields), num_measured=3)
    there = Desk(build(json.loads(text)), client).answer(*sent(here, request))
    told = packing.open_reply(packing.pack_reply(there))
    assert (told.payload, told.error, told.num_examples) == (None, "", 3)
    assert told.metrics["loss"] == here.answer(request).metrics["loss"] > 0


def test_the_clients_of_a_simulation_take_turns_at_one_desk(here, text):
    there = Desk(build(json.loads(text)))
    for client in here.clients:
        request = here.request(client)
        assert same(there.answer(*sent(here, request))) == same(here.answer(request))
    assert [there.hello(number)["client"] for number in range(len(here.clients))] == here.clients
    with pytest.raises(DataError, match="a node is to be number 4"):
        there.hello(4)


def test_the_model_is_loaded_once_and_another_type_takes_its_place(here, text, monkeypatch):
    loads, learners = [], Experiment.learners

    def counted(self, base, num_learners):
        # One that is still held here would be held beside the new one.
        loads.append((next(iter(base.weights.values())).dtype, there._loaded))
        return learners(self, base, num_learners)

    monkeypatch.setattr(Experiment, "learners", counted)
    client = here.clients[0]
    there = Desk(build(json.loads(text)), client)
    assert loads == []
    assert there.hello()["base"] == here.base.fingerprint
    whole, bf16 = here.request(client), here.request(client, rung=Rung("bf16 weights", dtype="bfloat16"))
    for request in (whole, whole, bf16, bf16, whole):
        there.answer(*sent(here, request))
    # Of a device that only says who it is, no weight is in memory.
    assert loads == [(torch.float32, None)] * 2 + [(torch.bfloat16, None), (torch.float32, None)]


def test_of_a_part_no_more_is_read_than_what_it_keeps(monkeypatch):
    read, load = [], Tiny.load

    def noted(self, seed, kept=None, dtype=None):
        # The checks of types in tests look at `weights`, and so ask for all of them with {}; nobody else does.
        if kept != {}:
            read.append(None if kept is None else {axis: index.tolist() for axis, index in kept.items()})
        return load(self, seed, kept, dtype)

    text = experiment_text("extraction=rolling")
    here = Here(text)
    requests = [here.request(here.clients[0], round, width=width) for round, width in ((1, 0.5), (2, 0.5), (3, 1.0))]
    monkeypatch.setattr(Tiny, "load", noted)
    monkeypatch.setattr(Tiny, "outline", lambda self, seed, dtype=None: load(self, seed, None, dtype))
    there = Desk(build(json.loads(text)), here.clients[0])
    for request in requests:
        there.answer(*sent(here, request))
    parts = [{axis: index.tolist() for axis, index in request.part.kept.items()} for request in requests]
    assert parts[0]
    assert read == [parts[0], parts[1], None]


def test_a_device_does_nothing_for_somebody_else(here, text):
    there = Desk(build(json.loads(text)), here.clients[0])
    with pytest.raises(ClientError, match="for another client"):
        there.answer(*sent(here, here.request(here.clients[1])))


def test_a_client_trains_on_the_data_of_its_own_device(text, tmp_path):
    rows = [{"prompt": f"say {word}: ", "completion": word} for word in ("lamp", "fan", "oven", "door")]
    for name in ("attic", "barn"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    everybodys, elsewhere = (
        json.dumps(json.loads(text) | {"data": {"_target_": "fedgen.data.jsonl.Jsonl", "path": path}})
        for path in (str(tmp_path), "nowhere")
    )
    here = Here(everybodys)
    asked = packing.pack_request(here.request("barn"), here.clients)
    answered = deal(asked, Place(elsewhere, "barn", f"path={tmp_path}"))
    assert same(packing.open_reply(answered)) == same(here.answer(here.request("barn")))
    assert packing.open_reply(deal(asked, Place(elsewhere, "barn"))).error == "no_data"
    (tmp_path / "barn.jsonl").unlink()
    desk._desk.cache_clear()
    assert packing.open_reply(deal(asked, Place(elsewhere, "barn", f"path={tmp_path}"))).error == "no_data"


def test_a_report_comes_with_every_answer(here, text):
    client = here.clients[0]
    said = packing.open_report(deal(packing.pack_hello(), Place(text, client)))
    again = packing.open_report(deal(packing.pack_request(here.request(client), here.clients), Place(text, client)))
    for report in (said, again):
        assert report["client"] == client
        assert report["base"] == here.base.fingerprint
        assert report["memory_bytes"] > 10**8
        assert report["cores"] >= 1
        assert report["seconds_to_answer"] > 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"experiment": ""}, "config"),
        ({"experiment": '{"_target_": "os.system"}'}, "config"),
        ({"data": "nothing=5"}, "config"),
        ({"client": "nobody"}, "other_client"),
    ],
)
def test_what_is_wrong_with_a_place_is_told_in_a_word(here, text, change, reason):
    asked = packing.pack_request(here.request(here.clients[0]), here.clients)
    place = dataclasses.replace(Place(text, here.clients[0]), **change)
    reply = packing.open_reply(deal(asked, place))
    assert (reply.round, reply.client, reply.payload, reply.error) == (1, here.clients[0], None, reason)


@pytest.mark.parametrize("header", ["", "[]", '{"format": 1, "kind": "request"}', '{"kind": "request"}', "[" * 100_000])
def test_a_letter_that_is_none_is_answered(text, header):
    assert packing.open_reply(deal(Letter(header), Place(text, "owner-0"))).error == "malformed"


def test_a_model_that_is_not_there_is_told_in_a_word(text, tmp_path):
    config = json.loads(text) | {
        "model": {"_target_": "fedgen.model.causal_lm.CausalLM", "source": str(tmp_path / "none")}
    }
    with pytest.raises(ClientError) as caught:
        packing.open_report(deal(packing.pack_hello(), Place(json.dumps(config), "owner-0")))
    assert caught.value.reason == "no_model"


def test_the_model_of_another_experiment_is_refused(here, text):
    request = dataclasses.replace(here.request(here.clients[0]), base="0" * 64)
    reply = packing.open_reply(deal(packing.pack_request(request, here.clients), Place(text, here.clients[0])))
    assert reply.error == "other_base"
