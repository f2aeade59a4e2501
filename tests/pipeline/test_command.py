"""Exit codes that tell the truth."""

import errno

import pytest
import typer
from typer.testing import CliRunner

from askance.pipeline.command import TooManyRefusedError, command


def run(error):
    def stage() -> None:
        if error:
            raise error

    app = typer.Typer()
    app.command()(command(stage))
    return CliRunner().invoke(app)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (ValueError("expected a, got b"), 1, "askance: expected a, got b"),
        (FileNotFoundError("nothing"), 1, "askance: nothing"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "free some space and run again"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "free some space and run again"),
        (ValueError("a key \x1b[2J"), 1, "askance: a key \\x1b[2J"),
        (TooManyRefusedError("2 refused"), 3, "askance: 2 refused"),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ],
)
def test_every_ending_has_its_code_and_one_line(error, code, message):
    result = run(error)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == bool(message)


def test_our_own_mistakes_keep_their_traceback():
    result = run(TypeError("a bug"))
    assert result.exit_code == 1
    assert isinstance(result.exception, TypeError)
