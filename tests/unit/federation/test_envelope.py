"""Letters in Flower's messages."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedgen.federation import envelope
from fedgen.federation.letter import Letter


@given(st.text(max_size=30), st.binary(max_size=30))
def test_a_letter_comes_out_as_it_went_in(header, body):
    assert envelope.take(envelope.put(Letter(header, body))) == Letter(header, body)
    assert envelope.take(envelope.put(Letter(header, bytearray(body)))) == Letter(header, body)


def test_all_bytes_are_one_array_and_none_are_no_array():
    content = envelope.put(Letter("{}", b"abc"))
    assert [(key, len(record)) for key, record in content.array_records.items()] == [(envelope.BODY, 1)]
    assert content.array_records[envelope.BODY][""].data == b"abc"
    assert not envelope.put(Letter("{}")).array_records


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({envelope.LETTER: MetricRecord({"header": 1})}),
        RecordDict({envelope.LETTER: ConfigRecord({"other": "x"}), envelope.BODY: ConfigRecord({"x": 1})}),
        RecordDict({envelope.LETTER: ConfigRecord({envelope.HEADER: b"{}"})}),
        RecordDict({envelope.BODY: ArrayRecord({"w": Array("uint8", (1,), envelope.STYPE, b"x")})}),
    ],
)
def test_what_is_no_letter_is_an_empty_one(content):
    assert envelope.take(content) == Letter("")
