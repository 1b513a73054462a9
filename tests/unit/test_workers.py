"""Jobs side by side."""

import threading

import pytest

from fedgen.model.tiny import Tiny
from fedgen.workers import Workers


@pytest.fixture(scope="module")
def learners():
    base = Tiny(hidden_size=8, num_layers=1).load(0)
    return [base.learner(base.replica(private=False), {}) for _ in range(3)]


def test_every_item_gets_one_result_and_no_learner_two_jobs_at_once(learners):
    busy, lock = set(), threading.Lock()

    def job(learner, item):
        with lock:
            assert id(learner) not in busy
            busy.add(id(learner))
        with lock:
            busy.remove(id(learner))
        return item * item

    assert sorted(Workers(learners).map(job, range(20))) == [n * n for n in range(20)]


def test_items_are_drawn_only_as_learners_become_free(learners):
    drawn = []

    def items():
        for n in range(10):
            drawn.append(n)
            yield n

    results = Workers(learners[:2]).map(lambda _, n: n, items())
    next(results)
    assert len(drawn) <= 3
    results.close()
    assert len(drawn) <= 3


def test_jobs_really_run_side_by_side(learners):
    meeting = threading.Barrier(2, timeout=10)
    assert sorted(Workers(learners[:2]).map(lambda _, n: meeting.wait() * 0 + n, [1, 2])) == [1, 2]


def test_the_first_failure_is_raised_and_the_learner_is_free_again(learners):
    workers = Workers(learners[:1])

    def fail(learner, item):
        raise KeyError(item)

    with pytest.raises(KeyError):
        list(workers.map(fail, [1, 2, 3]))
    assert workers.borrow(lambda learner: 7) == 7
