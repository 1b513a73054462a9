"""Bytes there and back."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen.errors import ClientError
from fedgen.messages import Payload
from fedgen.wire.dense import Dense

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64])


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(shapes, dtypes), max_size=4))
def test_there_and_back_is_the_identity(parts):
    generator = torch.Generator().manual_seed(0)
    state = {n: (torch.randn(s, generator=generator) * 9).to(d) for n, (s, d) in parts.items()}
    back = Dense().decode(Dense().encode(state))
    assert list(back) == list(state)
    assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in state.items())


def test_bytes_counted_are_the_bytes_of_the_array():
    payload = Dense().encode({"a": torch.zeros(16), "b": torch.zeros(3)})
    # 16 * 4 = 64, and 3 * 4 = 12 rounded up to 64
    assert payload.num_bytes == payload.data.numel() == 128


def test_decoding_copies_nothing():
    payload = Dense().encode({"a": torch.ones(4)})
    assert Dense().decode(payload)["a"].data_ptr() == payload.data.data_ptr()


@pytest.mark.parametrize(
    "manifest",
    [
        (("a", "float32", (5,)), ("b", "float32", (100,))),
        (("a", "float32", (4,)), ("a", "float32", (4,))),
        (("a", "object", (4,)),),
        (("a", "float32", (-4,)),),
        (("a", "float32", (2**46,)),),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(manifest):
    payload = Dense().encode({"a": torch.ones(4)})
    with pytest.raises(ClientError) as caught:
        Dense().decode(dataclasses.replace(payload, manifest=manifest))
    assert caught.value.reason == "malformed"


def test_cut_off_bytes_are_refused():
    payload = Dense().encode({"a": torch.ones(4)})
    with pytest.raises(ClientError):
        Dense().decode(Payload(payload.manifest, payload.data[:-1]))


def test_a_type_that_cannot_travel_is_named():
    with pytest.raises(ValueError, match=r"torch\.float64"):
        Dense().encode({"a": torch.zeros(1, dtype=torch.float64)})
