"""The small experiment of most tests of a device, and its answers from this process."""

import pytest

from tests.unit.federation.devices import Here, experiment_text


@pytest.fixture(scope="module")
def text():
    return experiment_text()


@pytest.fixture(scope="module")
def here(text):
    return Here(text)
