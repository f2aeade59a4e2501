"""One list of checks: the workflow, the hooks and `make check` run the same; versions agree."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


def jobs():
    return {name: job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}


def made(target):
    """Return the commands that make runs for a target."""
    command = ["make", "--no-print-directory", "--dry-run", "--always-make", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_check_job_runs_what_ci_runs():
    """By its name: the two can't drift apart."""
    job = jobs()["check"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_check_job_runs_on_every_python_that_the_package_promises():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least, most = map(
        int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    )
    assert jobs()["check"]["strategy"]["matrix"]["python"] == [f"3.{n}" for n in range(least, most)]


def test_the_hooks_are_those_of_make_check():
    commands = made("check")
    [repository] = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # the environment's tools, in the environment's versions
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        whole, part = hook["entry"], hook["entry"].startswith("pytest ")
        assert part or any(whole in command for command in commands), whole
    tools = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert {command.split()[0] for command in commands} - tools <= {"git", "bandit", "zizmor"}


def test_the_notebooks_hook_chooses_a_test():
    [hook] = [
        h for h in read(".pre-commit-config.yaml")["repos"][0]["hooks"] if h["id"] == "notebooks"
    ]
    _, _, file, _, chosen = hook["entry"].split()
    assert re.search(rf"^def test_\w*{chosen}", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_its_hash_and_names_its_version(path):
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    for one in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", one), one


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_no_more_than_it_must(path):
    workflow = read(path)
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]
    for name, job in workflow["jobs"].items():
        assert job["permissions"] == {"contents": "read"}, name
        assert job["timeout-minutes"] <= 60, name
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False, name


def test_the_lower_bounds_are_installed_with_the_extras_that_the_tests_need():
    [command] = [s["run"] for s in jobs()["lower-bounds"]["steps"] if "-e" in s.get("run", "")]
    [extras] = re.findall(r"\[(.+)\]", command)
    [default] = re.findall(r"^EXTRAS \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert extras == default


def test_the_version_is_one():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert read("CITATION.cff")["version"] == version
    assert re.search(
        rf"^## {re.escape(version)}( |$)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert f'__version__ = "{version}"' in (ROOT / "askance" / "__init__.py").read_text()


def test_the_changelog_has_the_form_it_names():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## Unreleased"
    kinds = {line for line in lines if line.startswith("### ")}
    known = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    assert kinds <= {f"### {kind}" for kind in known}


def test_every_test_and_module_that_the_security_page_names_exists():
    page = (ROOT / "docs" / "security.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"`([\w/]+\.(?:py|md|toml|yaml))`", page):
        assert (ROOT / path).is_file(), path
    for name, path in re.findall(r"`(\w+)` of `([\w/]+\.py)`", page):
        assert f"def {name}(" in (ROOT / path).read_text(), name
