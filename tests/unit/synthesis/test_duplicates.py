"""MinHash against a comparison of all pairs; the same words with another answer are no duplicate."""

import time
from dataclasses import replace

import pytest

from fedgen.errors import ConfigError
from fedgen.synthesis.duplicates import near, shingles
from fedgen.task import Draft


def said(text, answer="a"):
    return Draft(text, answer, "label", {}, 0)


def of_all_pairs(drafts, threshold):
    """Who is nearly the same as an earlier one that is nobody's copy, by comparing everyone with everyone."""
    pieces, originals, copies = [shingles(draft, by_words=False) for draft in drafts], [], set()
    for place, own in enumerate(pieces):
        if any(len(own & pieces[o]) >= threshold * len(own | pieces[o]) for o in originals):
            copies.add(place)
        else:
            originals.append(place)
    return copies


def test_it_finds_what_comparing_all_pairs_finds(drafts):
    varied = [replace(d, text=f"{d.text}{end}") for d in drafts[:150] for end in ("", "s", " please", " right now, ok")]
    found = near(varied, 0.7, by_words=False)
    expected = of_all_pairs(varied, 0.7)
    copies = {place for place, original in enumerate(found) if original is not None}
    assert len(copies & expected) >= 0.97 * len(expected) > 100
    assert len(copies - expected) <= 0.03 * len(expected)


def test_the_first_stays_and_is_named():
    one, other = said("turn on the lamp in the kitchen"), said("dim the light")
    assert near([one, other, said("Turn on the lamp in the kitchen!")], 0.9, by_words=False) == [None, None, 0]


def test_texts_with_another_answer_are_not_compared():
    one = said("dim to 40 percent", "40")
    assert near([one, said("dim to 45 percent", "45")], 0.3, by_words=False) == [None, None]
    assert near([one, said("dim to 45 percent", "40")], 0.3, by_words=False) == [None, 0]


def test_readings_are_compared_by_runs_of_numbers():
    one, other = "1.1 1.2 1.3 1.4 1.5 1.6 1.7 1.8", "1.8 1.7 1.6 1.5 1.4 1.3 1.2 1.1"
    assert near([said(one), said(other), said(f"{one} 1.9")], 0.7, by_words=True) == [None, None, 0]


def test_five_thousand_take_seconds(drafts):
    many = [replace(d, text=f"{d.text} number {i}") for i in range(9) for d in drafts][:5000]
    began = time.process_time()
    near(many, 0.85, by_words=False)
    assert time.process_time() - began < 10


def test_without_datasketch_the_message_names_the_ways_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fedgen\[synthesis\].*filters.near_duplicate=null"):
        near([said("a")], 0.8, by_words=False)
