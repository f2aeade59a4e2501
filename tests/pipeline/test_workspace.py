"""The guard: the code that runs is the code of the folder it runs in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ["askance", "pipeline", "features", "heads", "eval", "stages"]
GUARD = "from askance.pipeline.workspace import check_checkout; check_checkout(); print('right')"


@pytest.fixture
def copy(tmp_path):
    for folder in CODE:
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    return tmp_path


def run(folder, command=(sys.executable, "-c", GUARD), **variables):
    return subprocess.run(
        command, cwd=folder, text=True, capture_output=True, env=os.environ | variables
    )


def test_it_is_silent_in_the_checkout_and_in_a_copy_with_links(copy):
    assert run(ROOT).stdout == "right\n"
    assert run(copy).stdout == "right\n"


def test_it_is_silent_in_a_folder_of_the_users_own(tmp_path):
    assert run(tmp_path, PYTHONPATH=str(ROOT)).stdout == "right\n"


def test_it_names_foreign_packages_in_a_copy_whose_links_are_broken(copy):
    for folder in CODE[1:]:
        (copy / "askance" / folder).unlink()
    borrow = f"import askance; askance.__path__.append({str(ROOT / 'askance')!r})\n"
    done = run(copy, (sys.executable, "-c", borrow + GUARD))
    assert "expected the code of the checkout" in done.stderr
    assert str(ROOT / "heads") in done.stderr


def test_it_stops_a_command_started_from_another_checkout(copy):
    done = run(copy, (sys.executable, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}\n{GUARD}"))
    assert "start stages as 'python -m askance.stages.<name>'" in done.stderr
