"""The notebooks: their form, always; what they print, where the default run is."""

import ast
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ("01_look_at_a_store", "02_what_the_head_learned", "03_safe_retrieval")
ABSOLUTE = r"""["'(\s](/\w|~/|[A-Z]:\\)"""


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def of_kind(book, kind):
    return [cell for cell in book.cells if cell.cell_type == kind]


def text(cell):
    """Return what a cell printed, when it neither warned nor failed."""
    warned = [
        out for out in cell.outputs if out.output_type == "error" or out.get("name") == "stderr"
    ]
    assert not warned, f"{cell.id}: {warned}"
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def test_these_are_all_notebooks():
    assert sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_short_and_saved_as_it_was_written(name):
    book = read(name)
    nbformat.validate(book)
    assert len(book.cells) < 15
    assert book.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in book.cells:
        assert re.fullmatch("[a-z-]+", cell.id), f"{cell.id}: a name, which no editor changes"
        assert not cell.metadata
        assert not re.search(ABSOLUTE, cell.source), f"{cell.id}: an absolute path"
    for cell in of_kind(book, "code"):
        assert (cell.outputs, cell.execution_count) == ([], None), cell.id


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_defines_nothing(name):
    source = "\n".join(cell.source for cell in of_kind(read(name), "code"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_says_what_it_teaches_and_where_to_go_next(name):
    first, *_, last = read(name).cells
    assert re.match(r"# .+\n\nYou will .+\.", first.source)
    assert last.source.startswith("## Where to go next\n")
    assert "](../docs/" in last.source
    for cell in of_kind(read(name), "markdown"):
        for link in re.findall(r"\]\(([^)#:]+)\)", cell.source):
            assert (ROOT / "notebooks" / link).is_file(), link


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.parametrize("folder", ["", "notebooks"])
def test_a_notebook_finds_the_run_from_both_folders(name, folder, monkeypatch):
    [line] = re.findall(r"^root = (.+)$", of_kind(read(name), "code")[0].source, re.MULTILINE)
    monkeypatch.chdir(ROOT / folder)
    assert eval(line, {"Path": Path}).resolve() == ROOT


@pytest.fixture(scope="module")
def run():
    """Return the folder of a run: the default one in the root, else the quick one."""
    for folder in (ROOT, ROOT / ".quick"):
        if (folder / "results" / "run.json").is_file():
            return folder
    pytest.skip("no run to look at: run make quick, or make repro")


@pytest.fixture(scope="module")
def metrics(run):
    return json.loads((run / "results" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def execute(run, tmp_path_factory):
    """Return a function that runs a notebook on the run and returns what its cells print, by id.

    It runs in a folder of its own, from which links lead to the run.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "notebooks").mkdir()
    for name in ("dvc.yaml", "data", "stores", "results"):
        (folder / name).symlink_to(run / name)

    def execute(name):
        book = read(name)
        with pytest.MonkeyPatch.context() as patch:
            for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
                patch.setenv(variable, str(folder / variable.lower()))
            where = {"metadata": {"path": str(folder / "notebooks")}}
            NotebookClient(book, timeout=300, startup_timeout=300, resources=where).execute()
        return {cell.id: text(cell) for cell in of_kind(book, "code")}

    return execute


def number(text, pattern):
    """Return the one number in the text that the pattern's group matches."""
    [found] = re.findall(pattern, text)
    return float(found.rstrip("%")) / 100 if found.endswith("%") else float(found)


def test_the_store_has_the_losses_and_neighbours_of_the_run(run, metrics, execute):
    printed = execute("01_look_at_a_store")
    losses = json.loads((run / "results" / "run.json").read_text())["loss"]
    for kind, name in (("cross-fitted", "cross_fitted"), ("was fitted to", "in_sample")):
        mean = number(printed["histogram"], rf"{kind}: ([\d.]+) nats")
        assert mean == pytest.approx(losses[name], abs=1e-4)
    found = number(printed["joined"], r"R@1 ([\d.]+)")
    assert found == pytest.approx(metrics["r1"]["backbone"]["emoji"], abs=1e-4)


def test_what_the_head_learned_is_what_evaluate_measured(metrics, execute):
    printed = execute("02_what_the_head_learned")
    for name in ("seen", "emoji", "cifar10", "digits"):
        found = number(printed["r-auroc"], rf"{name} .*R-AUROC ([\d.]+)")
        assert found == pytest.approx(metrics["r_auroc"]["ranking"][name], abs=1e-4)
    found = number(printed["against-loss"], r"loss: (-?[\d.]+)")
    assert found == pytest.approx(metrics["spearman_loss"]["ranking"]["seen"], abs=1e-4)


def test_safe_retrieval_keeps_its_promise(run, execute):
    printed = execute("03_safe_retrieval")
    queries = pq.read_table(run / "results" / "queries" / "emoji.parquet")
    u, hit = (queries[c].to_numpy() for c in ("uncertainty/ranking/0", "hit"))
    threshold = number(printed["choose"], r"up to uncertainty ([\d.]+)")
    halves = np.array_split(np.random.default_rng(0).permutation(len(hit)), 2)
    for name, rows in zip(("sample", "held out"), halves, strict=True):
        accepted = rows[u[rows] <= threshold]
        told = rf"{name} +accepted {len(accepted)} of {len(rows)}, ([\d.]+%)"
        assert number(printed["choose"], told) == pytest.approx(1 - hit[accepted].mean(), abs=5e-4)
    broken = number(printed["promise-kept"], r"([\d.]+%) one with an error above alpha")
    assert broken <= 0.05
    assert "alpha 0.10: nothing can be promised" in printed["costs"]
