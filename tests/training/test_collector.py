"""The garbage collector ignores existing objects, but only within the context."""

import gc

import pytest

from dnas.errors import UserError
from dnas.training.collector import settled_objects


@pytest.fixture(autouse=True)
def thawed():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_objects_are_settled_within_and_not_after():
    with settled_objects():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


def test_they_are_not_after_a_failure_either():
    with pytest.raises(UserError), settled_objects():
        raise UserError("a step failed")
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_settled_stays_so():
    gc.freeze()
    with settled_objects():
        pass
    assert gc.get_freeze_count() > 1000
