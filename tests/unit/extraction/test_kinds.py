import pytest

from fedgen.extraction.anchored import Anchored
from fedgen.extraction.importance import Importance
from fedgen.extraction.kinds import KINDS, check
from fedgen.extraction.ordered import Ordered
from fedgen.extraction.random import Random
from fedgen.extraction.rolling import Rolling
from fedgen.extraction.static import Static

OPTIONS = [Anchored, Importance, Ordered, Random, Rolling, Static]


@pytest.mark.parametrize("option", OPTIONS)
def test_feed_forward_width_and_heads_are_cut_unless_others_are_named(option):
    assert option().axes == ("ffn", "kv")
    assert option(axes=KINDS).axes == ("ffn", "kv", "residual", "rank", "vocab")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("ffn", "head_dim"), r"axes has 'head_dim', which is not cut: rotary embeddings pair positions .* use kv"),
        (("layer",), "axes has 'layer', which is not cut: .* use extraction=depth"),
        (("heads",), "axes has 'heads'; it must be some of ffn, kv, residual, rank, vocab"),
        ((), "axes is empty; name some of ffn, kv, residual, rank, vocab, or use extraction=full"),
        (("ffn", "ffn"), r"axes is \['ffn', 'ffn'\]; each kind is to be named once"),
    ],
)
def test_axes_that_are_not_cut_are_refused(option, axes, message):
    with pytest.raises(ValueError, match=message):
        option(axes=axes)


def test_every_kind_alone_may_be_cut():
    for kind in KINDS:
        check((kind,))
