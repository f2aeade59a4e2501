"""The house: links, packaging, imports, and the rules that dvc.yaml must keep."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "features", "heads", "eval", "stages")


def graph():
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def stages():
    """Yield every stage's name and body, templates once."""
    return {name: stage.get("do", stage) for name, stage in graph().items()}


def paths(entries):
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_link_resolves_to_its_sibling(folder):
    link = ROOT / "askance" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert (ROOT / folder / "__init__.py").is_file()


def test_the_packaging_list_equals_the_folders():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    real = {
        "askance." + str(init.parent.relative_to(ROOT)).replace("/", ".")
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert set(config["packages"]) == {"askance", "askance.doctor"} | real
    assert config["package-dir"] == {f"askance.{folder}": folder for folder in FOLDERS}


def test_every_stage_starts_as_a_module_of_its_own_name():
    for name, stage in stages().items():
        module = name.partition("-")[0]
        assert stage["cmd"].split()[:3] == ["python", "-m", f"askance.stages.{module}"]
        assert f"stages/{module}.py" in stage["deps"]
        assert (ROOT / "stages" / f"{module}.py").is_file()


def test_no_output_is_holds_or_lies_in_a_code_folder():
    code = [*FOLDERS, "askance", "tests", "docs", "benchmarks"]
    for stage in stages().values():
        for path in paths(stage["outs"]):
            assert path.split("/")[0] not in code, path


def test_stores_persist_and_stay_out_of_the_cache():
    found = [out for stage in stages().values() for out in stage["outs"] if "stores/" in str(out)]
    assert len(found) == 3
    assert all(list(out.values()) == [{"persist": True, "cache": False}] for out in found)


def test_every_dependency_in_the_tree_exists():
    for stage in stages().values():
        for path in paths(stage["deps"]):
            if path.split("/")[0] in FOLDERS:
                assert (ROOT / path).exists(), path


def test_parameters_are_flat_single_words_and_never_null():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, section in params.items():
        groups = section.values() if name == "prepare" else [section]
        for group in groups:
            for key, value in group.items():
                assert key.isalpha(), key
                assert value is not None, key
                assert not isinstance(value, dict), key


def test_no_stage_reads_params_yaml():
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            assert "params.yaml" not in file.read_text(), file


@pytest.mark.parametrize(
    "stage",
    [
        "prepare",
        "extract",
        "probe",
        "retrieve",
        "mix",
        "map",
        "train",
        "evaluate",
        "curate",
        "report",
    ],
)
def test_help_needs_neither_torch_nor_timm_nor_faiss(stage):
    code = (
        f"import sys; import askance.stages.{stage}\n"
        "print([m for m in ('torch', 'timm', 'faiss', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_askance_is_light_and_has_the_public_names():
    code = "import sys, askance; print('torch' in sys.modules, dir(askance))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True
    )
    names = ["Model", "UncertaintyScorer", "__version__", "load", "metrics", "open_store"]
    assert done.stdout.strip() == f"False {names}"


def test_the_readmes_tree_equals_the_real_one():
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("<!-- tree -->")[1].split("```")[1].strip().splitlines()[1:]
    told = {line.split()[0].rstrip("/") for line in tree}
    ignored = (ROOT / ".gitignore").read_text().replace("/", "").split()
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    real = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert told == {name for name in real if not name.startswith(".")} - set(ignored)
