"""The garbage collector rests while libraries are imported, and is never left off."""

import gc

import pytest
from confide.memory import nothing_to_collect


def test_collecting_goes_on_after_an_import_that_failed() -> None:
    assert gc.isenabled()
    with pytest.raises(ImportError), nothing_to_collect():
        assert not gc.isenabled()
        with nothing_to_collect():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_what_was_off_before_stays_off() -> None:
    gc.disable()
    try:
        with nothing_to_collect():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
