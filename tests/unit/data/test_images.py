import subprocess
import sys
from collections import Counter

import pytest
from sklearn.datasets import load_digits

from fedgen.data.images import Images
from fedgen.errors import DataError


@pytest.fixture(scope="module")
def dataset():
    return Images().load(0)


def everything(dataset):
    return [*dataset.train, *dataset.evaluation["test"], *dataset.public]


def levels(prompt):
    return [ord(letter) - ord("a") for letter in prompt]


def test_every_picture_is_used_once_and_has_its_digit(dataset):
    digits = load_digits()
    pairs = zip(digits.images, digits.target, strict=True)
    answers = {tuple(map(int, picture.ravel())): str(digit) for picture, digit in pairs}
    assert len(answers) == 1797
    found = {tuple(levels(example.prompt)): example.completion for example in everything(dataset)}
    assert found == answers
    assert len(everything(dataset)) == 1797
    assert all(example.label == example.completion for example in everything(dataset))


def test_letters_are_grey_levels_row_by_row(dataset):
    first = load_digits().images[0]
    # The first row of the first picture, a nought: blank but for 5, 13, 9 and 1 in the middle.
    assert first[0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    (example,) = [x for x in everything(dataset) if levels(x.prompt) == first.ravel().tolist()]
    assert example.prompt[:8] == "aafnjbaa"
    assert example.completion == "0"


def test_a_fifth_of_each_digit_is_for_evaluation(dataset):
    # 178, 182, 177, 183, 181, 182, 181, 179, 174 and 180 pictures of the digits; a fifth of each, rounded.
    numbers = [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert list(dataset.evaluation) == ["test"]
    counts = Counter(example.label for example in dataset.evaluation["test"])
    assert [counts[str(digit)] for digit in range(10)] == numbers
    assert Counter(example.label for example in dataset.public) == {str(digit): 10 for digit in range(10)}
    assert {example.owner for example in (*dataset.public, *dataset.evaluation["test"])} == {""}
    assert f"{1797 - 359 - 100} for training from 20 owners, 359 for evaluation" in dataset.description


def test_owners_have_equally_many_of_all_kinds(dataset):
    counts = Counter(example.owner for example in dataset.train)
    assert set(counts) == {f"owner-{number}" for number in range(20)}
    assert set(counts.values()) == {66, 67}
    labels = [{example.label for example in dataset.train if example.owner == owner} for owner in counts]
    assert all(len(own) >= 9 for own in labels)


def test_fewer_examples_are_as_many_of_each_digit_and_change_no_other_split(dataset):
    fewer = Images(num_owners=4, num_train=50, num_eval=30).load(0)
    assert Counter(example.label for example in fewer.train) == {str(digit): 5 for digit in range(10)}
    assert Counter(example.label for example in fewer.evaluation["test"]) == {str(digit): 3 for digit in range(10)}
    assert Counter(example.owner for example in fewer.train) == {f"owner-{n}": 13 - n // 2 for n in range(4)}
    assert fewer.evaluation["test"] == dataset.evaluation["test"][:30]
    assert fewer.public == dataset.public
    assert {x.prompt for x in fewer.train} <= {x.prompt for x in dataset.train}


def test_the_seed_decides(dataset):
    assert Images().load(0) == dataset
    assert set(Images().load(1).evaluation["test"]) != set(dataset.evaluation["test"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 1339}, "num_train is 1339, and there are 1338 pictures to choose from"),
        ({"num_eval": 360}, "num_eval is 360, and there are 359 pictures to choose from"),
        ({"num_public": 1438}, "0 pictures are left for 20 owners"),
    ],
)
def test_more_than_there_are_is_an_error(options, message):
    with pytest.raises(DataError, match=message):
        Images(**options).load(0)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "sklearn.datasets", None
    )  # what Python does for a module that must not be imported
    with pytest.raises(DataError, match=r"scikit-learn: pip install 'fedgen\[images\]'"):
        Images().load(0)


def test_checking_the_options_does_not_import_the_package():
    code = "import sys; from fedgen.data.images import Images; Images(); print('sklearn' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_owners": 0}, "num_owners is 0"),
        ({"num_train": 0}, "num_train is 0"),
        ({"num_eval": 0}, "num_eval is 0"),
        ({"num_public": -1}, "num_public is -1"),
        ({"num_train": 19}, "num_train is 19, too few for 20 owners"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Images(**options)
