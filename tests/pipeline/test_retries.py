"""Servers: what may pass is asked again, what lasts is not."""

import pytest

from askance.pipeline import retries
from askance.pipeline.retries import ATTEMPTS, ServerError, passing, patiently


def answered(status):
    error = OSError("an answer")
    error.status = status
    return error


PASSES = [OSError("reset"), TimeoutError(), answered(408), answered(429), answered(500)]
LASTS = [ValueError("ours"), FileNotFoundError(), PermissionError(), answered(403), answered(404)]
NO_CREDENTIALS = type("NoCredentialsError", (Exception,), {"__module__": "botocore.exceptions"})
CUT = type("ClientPayloadError", (Exception,), {"__module__": "aiohttp.client_exceptions"})


@pytest.mark.parametrize("error", [*PASSES, CUT()], ids=repr)
def test_what_may_pass_is_asked_again_but_not_for_ever(error, monkeypatch):
    monkeypatch.setattr(retries, "LONGEST", 0)
    asked = []

    def fail(place, times):
        asked.append(place)
        if len(asked) <= times:
            raise error
        return "content"

    assert patiently("s3://b/x", fail, "x", times=ATTEMPTS - 1) == "content"
    assert len(asked) == ATTEMPTS
    asked.clear()
    with pytest.raises(ServerError, match=rf"an answer about s3://b/x, got {type(error).__name__}"):
        patiently("s3://b/x", fail, "x", times=ATTEMPTS)
    assert len(asked) == ATTEMPTS


@pytest.mark.parametrize("error", [*LASTS, NO_CREDENTIALS()], ids=repr)
def test_what_lasts_is_told_at_once(error):
    asked = []

    def fail():
        asked.append(1)
        raise error

    assert not passing(error)
    with pytest.raises(type(error)) as told:
        patiently("s3://b/x", fail)
    assert told.value is error
    assert len(asked) == 1
