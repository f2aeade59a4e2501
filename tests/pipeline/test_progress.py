"""Progress in plain lines."""

from askance.pipeline import progress as module
from askance.pipeline.progress import progress


def test_plain_lines_tell_count_rate_and_time_left(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("extract", 100, "img") as advance:
        advance(25)
    assert capsys.readouterr().err.splitlines() == [
        "extract: 25/100 img, 2.5 img/s, 0:30 left",
        "extract: 25/100 img, 1.2 img/s, 1:00 left, 0:20 in all",
    ]


def test_a_job_of_which_nothing_is_done_ends_quietly(monkeypatch, capsys):
    clock = iter([0.0, 7.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("extract", 100, "img"):
        pass
    assert capsys.readouterr().err == "extract: 0/100 img, 0.0 img/s, 0:07 in all\n"


def test_a_short_job_still_has_its_last_line(capsys):
    with progress("train", 3, "heads") as advance:
        advance(3)
    assert capsys.readouterr().err.startswith("train: 3/3 heads, ")
