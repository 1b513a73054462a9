"""Requests and replies as letters: nothing is lost, and nothing that the other end sends does harm."""

import dataclasses
import json
import math

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen.devices import Rung
from fedgen.errors import ClientError
from fedgen.federation import packing
from fedgen.federation.letter import FORMAT, Letter, failure
from fedgen.messages import Payload, Reply, Request
from fedgen.types import Part

NAMES = st.text(min_size=1, max_size=12)
WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
SHARES = st.floats(0, 1)
UNITS = st.dictionaries(NAMES, st.sets(st.integers(0, 300)), max_size=3)
PAYLOADS = st.tuples(
    st.lists(st.tuples(NAMES, NAMES, st.lists(st.integers(0, 9), max_size=3)), max_size=3), st.binary(max_size=200)
)
MAYBE = [st.one_of(st.none(), st.integers(1, 4096))] * 3
RUNGS = st.tuples(
    WORDS, st.one_of(st.none(), WORDS), st.one_of(st.none(), st.booleans()), *MAYBE, st.booleans(), st.booleans()
)
METRICS = st.dictionaries(WORDS, st.floats(allow_nan=False), max_size=4)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


def plain(value):
    """The value with tensors as lists, so that two of them can be compared."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value


def kept_of(units):
    return {axis: torch.tensor(sorted(chosen), dtype=torch.int64) for axis, chosen in units.items()}


def payload_of(drawn):
    manifest, data = drawn
    entries = tuple((name, dtype, tuple(shape)) for name, dtype, shape in manifest)
    return Payload(entries, torch.tensor(list(data), dtype=torch.uint8))


def a_request():
    data = torch.arange(8, dtype=torch.uint8)
    return Request(3, "barn", 0.5, Part(0.5, {"ffn": torch.tensor([0, 2])}), Payload((("w", "float32", (2,)),), data))


def a_reply():
    return Reply(3, "barn", a_request().payload, 7, {"loss": 0.25, "num_steps": 4.0}, kept={"vocab": torch.tensor([1])})


@hypothesis.settings(max_examples=40)
@given(NAMES, SHARES, st.tuples(SHARES, UNITS, st.integers(0, 99), SHARES), PAYLOADS, RUNGS, st.sets(NAMES, max_size=4))
def test_a_request_comes_back_as_it_was(client, progress, part, drawn, rung, others):
    width, units, missed, top_layers = part
    asked = Part(width, kept_of(units), missed, top_layers, rank=missed or None)
    request = Request(missed + 1, client, progress, asked, payload_of(drawn), "abc", Rung(*rung), missed)
    clients = sorted({*others, client})
    opened, found = packing.open_request(packing.pack_request(request, clients))
    assert plain(opened) == plain(request)
    assert len(found) == len(clients)
    assert found.index(client) == clients.index(client)


def test_a_device_learns_no_name_but_its_own():
    letter = packing.pack_request(a_request(), ["attic", "barn", "cellar"])
    assert "attic" not in letter.header
    assert "cellar" not in letter.header
    assert packing.open_request(letter)[1] == ("", "barn", "")


@hypothesis.settings(max_examples=40)
@given(NAMES, st.one_of(st.none(), PAYLOADS), st.integers(-5, 2**40), METRICS, st.one_of(st.just(""), WORDS), UNITS)
def test_a_reply_comes_back_as_it_was(client, drawn, num_examples, metrics, error, units):
    payload = None if drawn is None else payload_of(drawn)
    reply = Reply(3, client, payload, num_examples, metrics, error, kept_of(units))
    opened = packing.open_reply(packing.pack_reply(reply))
    assert plain(opened) == plain(reply)


def test_a_number_that_is_none_comes_across_and_is_left_to_the_server_to_refuse():
    letter = packing.pack_reply(dataclasses.replace(a_reply(), metrics={"loss": math.nan, "top": math.inf}))
    metrics = packing.open_reply(letter).metrics
    assert math.isnan(metrics["loss"])
    assert metrics["top"] == math.inf


def test_what_is_opened_can_be_changed_without_changing_the_letter():
    letter = packing.pack_reply(a_reply())
    before = bytes(letter.body)
    packing.open_reply(letter).payload.data.zero_()
    assert letter.body == before


def test_units_cost_a_bit_each():
    kept = {"vocab": torch.randperm(49152, generator=torch.Generator().manual_seed(0))[:24576].sort().values}
    request = dataclasses.replace(a_request(), part=Part(0.5, kept))
    assert len(packing.pack_request(request, ["barn"]).header) < 49152 / 6 + 1000


@pytest.mark.parametrize("opens", [packing.open_request, packing.open_reply, packing.open_report])
@given(st.one_of(st.text(max_size=40), JSON.map(json.dumps)), st.binary(max_size=20))
def test_garbage_is_malformed(opens, header, body):
    with pytest.raises(ClientError, match=r"cannot be read"):
        opens(Letter(header, body))


@pytest.mark.parametrize(
    ("packed", "opens"),
    [
        (packing.pack_request(a_request(), ["attic", "barn"]), packing.open_request),
        (packing.pack_reply(a_reply(), {"cores": 4}), packing.open_reply),
        (packing.pack_reply(a_reply(), {"cores": 4}), packing.open_report),
    ],
)
@given(st.data())
def test_whatever_one_value_is_exchanged_for_nothing_worse_than_malformed_happens(packed, opens, data):
    header = json.loads(packed.header)
    place = header
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        inner = place[key]
        if not inner or not isinstance(inner, dict | list) or data.draw(st.booleans()):
            break
        place = inner
    place[key] = data.draw(JSON)
    try:
        opens(Letter(json.dumps(header), packed.body))
    except ClientError as error:
        assert error.reason == "malformed"  # noqa: PT017 - most changes are harmless to one of the readers


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), FORMAT + 1),
        (("kind",), "reply"),
        (("round",), 0),
        (("round",), True),
        (("round",), 1.0),
        (("client",), ""),
        (("client",), "x" * 300),
        (("place",), 2),
        (("place",), -1),
        (("num_clients",), 2**40),
        (("progress",), math.nan),
        (("progress",), 1.5),
        (("part", "width"), "wide"),
        (("part", "rank"), 0),
        (("part", "kept"), {"ffn": "not base 64"}),
        (("part", "kept"), {"ffn": "A" * 2**20}),
        (("part", "kept"), [1, 2]),
        (("rung", "dtype"), 5),
        (("rung", "micro_batch"), 1.5),
        (("rung",), {}),
        (("payload", "num_bytes"), 9),
        (("payload", "sha256"), "0" * 64),
        (("payload", "manifest"), [["w", "float32", [-1]]]),
        (("payload", "manifest"), [["w", "float32"]]),
        (("payload", "manifest"), [["w", "float32", [1] * 9]]),
        (("payload", "manifest"), [["w", "float32", [1]]] * (2**16 + 1)),
        (("payload",), None),
        (("base",), "x" * 300),
    ],
)
def test_a_request_with_one_wrong_value_is_malformed(path, value):
    letter = packing.pack_request(a_request(), ["attic", "barn"])
    header = json.loads(letter.header)
    place = header
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ClientError) as caught:
        packing.open_request(Letter(json.dumps(header), letter.body))
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("error", "It failed: /etc/passwd"),
        ("error", ["died"]),
        ("num_examples", "many"),
        ("num_examples", True),
        ("metrics", {"loss": "low"}),
        ("metrics", {"loss": 10**400}),
        ("metrics", {"Loss of mine": 1.0}),
        ("metrics", {f"m{number}": 1.0 for number in range(65)}),
        ("kept", {"vocab": 3}),
        ("payload", None),
    ],
)
def test_a_reply_with_one_wrong_value_is_malformed(key, value):
    letter = packing.pack_reply(a_reply())
    with pytest.raises(ClientError) as caught:
        packing.open_reply(Letter(json.dumps(json.loads(letter.header) | {key: value}), letter.body))
    assert caught.value.reason == "malformed"


def test_one_bit_that_changes_on_the_way_is_noticed():
    letter = packing.pack_reply(a_reply())
    body = bytearray(letter.body)
    body[3] ^= 4
    with pytest.raises(ClientError, match="not those of which the header tells"):
        packing.open_reply(Letter(letter.header, body))


@pytest.mark.parametrize("header", ["[" * 100_000, "1" * 5000, '{"format": 1', "x" * (2**23 + 1)])
def test_what_would_exhaust_a_reader_is_refused(header):
    for opens in (packing.open_request, packing.open_reply, packing.open_report):
        with pytest.raises(ClientError):
            opens(Letter(header))


def test_a_report_comes_with_a_hello_and_with_a_reply():
    report = {"client": "barn", "memory_bytes": 9 * 10**8, "temperature_c": 51.5}
    assert packing.open_report(packing.pack_report(report)) == report
    assert packing.open_report(packing.pack_reply(a_reply(), report)) == report
    assert packing.open_report(packing.pack_reply(a_reply())) == {}


@pytest.mark.parametrize(
    "report",
    [
        {"client": "\x1b[2J"},
        {"client": "x" * 200},
        {"temperature_c": math.nan},
        {"memory_bytes": True},
        {"memory_bytes": 2**64},
        {"Client": "barn"},
        {f"n{number}": 1 for number in range(65)},
    ],
)
def test_a_report_holds_plain_numbers_and_short_texts_only(report):
    with pytest.raises(ClientError, match="cannot be read"):
        packing.open_report(packing.pack_report(report))


def test_a_report_is_flat():
    header = json.loads(packing.pack_report({}).header) | {"report": {"memory_bytes": [1]}}
    with pytest.raises(ClientError, match="cannot be read"):
        packing.open_report(Letter(json.dumps(header)))


def test_a_failure_is_a_reply_to_the_request_that_it_answers():
    asked = packing.pack_request(a_request(), ["barn"])
    assert packing.open_reply(failure(asked.header, "died")) == Reply(3, "barn", error="died")
    with pytest.raises(ClientError) as caught:
        packing.open_report(failure(packing.pack_hello().header, "timed_out"))
    assert caught.value.reason == "timed_out"


@given(st.one_of(st.text(max_size=20), JSON.map(json.dumps)))
def test_whatever_was_asked_a_failure_can_be_told(header):
    assert packing.open_reply(failure(header, "failed")).error == "failed"
