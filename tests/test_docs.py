"""What the documents say exists; what the docstrings show runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

import askance

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(askance.__path__, "askance.")
    if "__main__" not in name
)


def blocks(language):
    return [
        b for p in PAGES for b in re.findall(rf"```{language}\n(.*?)```", p.read_text(), re.DOTALL)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def test_every_make_target_in_the_documents_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    told = {
        target
        for block in blocks("bash")
        for target in re.findall(r"^make ([a-z]+)", block, re.MULTILINE)
    }
    assert {"repro", "test"} <= told <= set(targets)


def test_every_parameter_overridden_in_the_documents_exists():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    told = [key for block in blocks("bash") for key in re.findall(r"-S '?([a-z]+\.[a-z]+)=", block)]
    assert told
    for key in told:
        section, name = key.split(".")
        assert name in params[section], key


def test_every_file_linked_in_the_documents_exists():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(
    "variant", sorted((ROOT / "docs" / "variants").glob("*.yaml")), ids=lambda p: p.stem
)
def test_variants_have_the_parameters_of_the_default(variant):
    default, other = (yaml.safe_load(p.read_text()) for p in (ROOT / "params.yaml", variant))
    assert {n: set(s) for n, s in default.items() if n != "prepare"} == {
        n: set(s) for n, s in other.items() if n != "prepare"
    }
    assert {"upstream", *other["evaluate"]["sets"]} == set(other["prepare"])


def test_python_blocks_compile():
    for block in blocks("python"):
        compile(block, "README", "exec")
