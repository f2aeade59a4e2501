"""What the documents say exists, what they show runs, and the site they make is whole.

Blocks of Python and bash are run, page by page and in order, in a folder that holds what `make
repro` made. The few that can't be have the reason on the line before: `<!-- not run: ... -->`.
"""

import ast
import doctest
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import askance
from askance import metrics
from askance.heads.catalogue import HEADS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(askance.__path__, "askance.")
    if "__main__" not in name
)
LANGUAGES = {"python", "bash", "console", "yaml", ""}  # console: what a terminal showed
RUN = ("data", "stores", "neighbours", "models", "results")
WHERE = next((w for w in (ROOT, ROOT / ".quick") if (w / "results" / "run.json").exists()), None)
OF_THE_RUN = re.compile(r'(data|stores|neighbours|models|results)/|load\("\."\)|askance|photo')
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
CLAIM = re.compile(r"#\s(nan|-?\d[\d.]*)")  # what a comment says an expression comes to
NEAR = 0.02  # how far a claim may be off: other processors round otherwise


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    before: str  # the line before the fence

    @property
    def reason(self):
        found = NOT_RUN.fullmatch(self.before)
        return found[1] if found else ""

    @property
    def of_the_run(self):
        return OF_THE_RUN.search(self.code)

    def __str__(self):
        return f"{self.page.name}, line {self.line}"


def blocks_of(page):
    text = page.read_text()
    lines = text.splitlines()
    for token in MarkdownIt().parse(text):
        if token.type == "fence":
            line = token.map[0]
            yield Block(page, line + 1, token.info, token.content, lines[line - 1].strip())


BLOCKS = {page: list(blocks_of(page)) for page in PAGES}
TO_RUN = {
    page: [b for b in blocks if b.language in ("python", "bash") and not b.reason]
    for page, blocks in BLOCKS.items()
}


def blocks(language):
    return [b.code for found in BLOCKS.values() for b in found if b.language == language]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


# Blocks of code.


def test_every_block_is_of_a_known_language_and_every_reason_has_its_block():
    for page, found in BLOCKS.items():
        assert {b.language for b in found} <= LANGUAGES, page.name
        reasons = [b for b in found if b.language in ("python", "bash") and b.reason]
        assert all(len(b.reason.split()) >= 3 for b in reasons), page.name
        assert len(reasons) == page.read_text().count("<!-- not run"), page.name


@pytest.fixture(scope="module")
def copy_of_the_run(tmp_path_factory):
    """Return a copy of what `make repro` made, or `make quick`, that blocks may write to."""
    copy = tmp_path_factory.mktemp("run")
    for name in RUN:
        shutil.copytree(WHERE / name, copy / name)
    shutil.copy(WHERE / "params.yaml", copy)
    return copy


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """Go to a folder with the run, the scripts of docs/, and pictures by the documents' names."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    if WHERE:
        copy = request.getfixturevalue("copy_of_the_run")
        for part in copy.iterdir():
            (tmp_path / part.name).symlink_to(part)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "photos").mkdir()
    picture = load_sample_images().images[0]
    for i in range(24):
        cut = Image.fromarray(picture[10 * i : 10 * i + 160, 15 * i : 15 * i + 200])
        cut.save(tmp_path / "photos" / f"{i:02}.jpg")
    cut.save(tmp_path / "photo.jpg")
    cut.save(tmp_path / "another.jpg")
    labels = [f"photos/{i:02}.jpg,{i % 2}\n" for i in range(24)]
    (tmp_path / "labels.csv").write_text("".join(["key,label\n", *labels]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if TO_RUN[p]], ids=lambda p: p.name)
def test_the_blocks_of_a_page_run(page, folder):
    names = {"__name__": "__main__"}
    for block in TO_RUN[page]:
        if block.of_the_run and not WHERE:
            pytest.skip(f"no run for {block}: `make quick` makes one")
        if block.language == "python":
            run_python(block, names)
        else:
            done = subprocess.run(["bash", "-ec", block.code], text=True, capture_output=True)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def run_python(block, names):
    """Run a block statement by statement; a number in the comment on an expression is its value."""
    lines = block.code.splitlines()
    for statement in ast.parse(block.code).body:
        try:
            if not isinstance(statement, ast.Expr):
                exec(compile(ast.Module([statement], []), str(block), "exec"), names)
                continue
            value = eval(compile(ast.Expression(statement.value), str(block), "eval"), names)
        except Exception as error:
            error.add_note(f"{block}: {ast.unparse(statement)}")
            raise
        # What is claimed is of the default run.
        if WHERE == ROOT and (
            told := CLAIM.search(lines[statement.end_lineno - 1][statement.end_col_offset :])
        ):
            near = pytest.approx(float(told[1]), abs=NEAR, nan_ok=True)
            assert float(value) == near, f"{block}: {lines[statement.lineno - 1]}"


# What the documents name.


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


def test_every_command_named_in_the_documents_exists():
    from typer.main import get_command

    from askance.__main__ import app

    told = re.findall("`askance ([a-z-]+)", "".join(page.read_text() for page in PAGES))
    for code in blocks("bash") + blocks("console"):
        told += re.findall(r"^(?:[$] )?askance ([a-z-]+)", code, re.MULTILINE)
    assert set(told) <= set(get_command(app).commands)


@pytest.mark.parametrize(
    "variant", sorted((ROOT / "docs" / "variants").glob("*.yaml")), ids=lambda p: p.stem
)
def test_variants_have_the_parameters_of_the_default(variant):
    default, other = (yaml.safe_load(p.read_text()) for p in (ROOT / "params.yaml", variant))
    assert {n: set(s) for n, s in default.items() if n != "prepare"} == {
        n: set(s) for n, s in other.items() if n != "prepare"
    }
    assert {"upstream", *other["evaluate"]["sets"]} == set(other["prepare"])


def test_every_head_and_every_metric_has_its_place():
    heads, measures = ((ROOT / "docs" / f"{p}.md").read_text() for p in ("heads", "metrics"))
    formulas = heads.split("## Formulas")[1].split("\n## ")[0]
    for name in HEADS:
        assert f"`{name}`" in heads, name
        if "published" not in name:
            assert re.search(rf"^{name} ", formulas, re.MULTILINE), name
    functions = [name for name in metrics.__all__ if name.islower()]
    for name in functions:
        assert re.search(rf"\b{name}\b", measures), name


# docs/pipeline.md, held to the graph.


def table(header):
    """Return the cells of each row of the page's table that begins with this."""
    text = (ROOT / "docs" / "pipeline.md").read_text()
    lines = text.split(f"\n| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell):
    return re.findall("`([^`]+)`", cell)


@pytest.fixture(scope="module")
def params():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


@dataclass(frozen=True)
class Stage:
    name: str
    reads: set
    writes: set
    sections: set  # of params.yaml, that its command has options of


@pytest.fixture(scope="module")
def stages(params):
    """Return every stage of the graph, those with a set once for each; code is left out."""

    def paths(entries, item):
        found = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
        found = [re.sub(r"\$\{(item|key)\}", item, path) for path in found]
        found = [path.replace("${mix.upstream}", params["mix"]["upstream"]) for path in found]
        return {path for path in found if path.split("/")[0] in RUN}

    found = []
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        body, items = stage.get("do", stage), [""]
        if "foreach" in stage:
            section, _, key = stage["foreach"][2:-1].partition(".")
            items = list(params[section][key] if key else params[section])
        options = set(re.findall(r"\$\{([a-z]+)", body["cmd"])) & set(params)
        options |= {name} if stage.get("foreach") == f"${{{name}}}" else set()
        found += [
            Stage(name, paths(body["deps"], item), paths(body["outs"], item), options)
            for item in items
        ]
    return found


def test_the_pipeline_page_has_every_stage(stages, params):
    told = {
        names(row[0])[0]: [set(names(cell)) for cell in row[1:]] for row in table("stage | reads")
    }
    assert set(told) == {stage.name for stage in stages}
    mixed_in = f"stores/{params['mix']['upstream']}.zarr"
    for stage in stages:
        reads, writes, options = told[stage.name]
        item = next(iter(stage.writes)).rpartition("/")[2].partition(".")[0]
        reads, writes = ({p.replace("<set>", item) for p in paths} for paths in (reads, writes))
        reads = {path.replace("stores/<mix.upstream>.zarr", mixed_in) for path in reads}
        assert (reads, writes, options) == (stage.reads, stage.writes, stage.sections), stage.name


def test_the_pipeline_page_says_what_runs_again(stages):
    for change, again, *_ in table("you change")[1:]:
        running = [stage for stage in stages if names(change)[0] in stage.sections]
        assert running, change
        for stage in running:  # which grows
            made = [Path(path) for path in stage.writes]
            running += [
                other
                for other in stages
                if other not in running
                and any(
                    a.is_relative_to(b) or b.is_relative_to(a)
                    for a in made
                    for b in map(Path, other.reads)
                )
            ]
        assert {stage.name for stage in running} == set(names(again)), change


def test_the_pipeline_page_has_every_parameter_and_its_default(params):
    told, page = {}, (ROOT / "docs" / "pipeline.md").read_text().split("## Parameters")[1]
    for row in (line.split("|") for line in page.splitlines() if line.startswith("| `")):
        key, values = names(row[1]), names(row[2])
        if row[2].strip() == "default":
            prefix = key[0] if len(key) == 1 else ""  # of two sections: their rows have it
        else:
            told[prefix + key[0]] = values
    real = {
        f"{section}.{name}": [
            each if isinstance(each, str) else yaml.safe_dump(each).split("\n")[0]
            for each in (value if isinstance(value, list) else [value])
        ]
        for section, found in params.items()
        if section != "prepare"
        for name, value in found.items()
    }
    assert told == real


# The site.


class Requests(HTMLParser):
    """Collects what a page makes a browser fetch, and the text that it shows."""

    def __init__(self):
        super().__init__()
        self.fetched, self.shown = [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.fetched.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(given.get("href") or "")

    def handle_data(self, data):
        self.shown.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the site, built strictly: a link that leads nowhere ends it."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_asks_no_other_host_for_anything(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)  # README is none of them, and 404.html is
    for page in pages:
        found = Requests()
        found.feed(page.read_text())
        assert found.fetched, page.name
        assert not [url for url in found.fetched if "//" in url], page.name
        assert "<!--" not in "".join(found.shown), page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\s\"']*(https?:)?//", style.read_text()), style.name


def test_the_reference_has_its_docstrings_in_sections(site):
    page = (site / "reference.html").read_text()
    assert "blockquote" not in page  # what >>> would be outside of examples
    assert 'class="source"' not in page
    for name in ("load", "Model", "UncertaintyScorer", "r_auroc", "FeatureStore", "Head"):
        assert re.search(rf'id="askance\.[a-z_.]+\.{name}"', page), name


def numbers_told(page, head):
    """Return the first table row of a head on a page, as numbers before their intervals."""
    row = re.search(rf"^\| {head}(?: [†‡]+)?(?: \(\w+\))? \|(.*)\|$", page, re.MULTILINE)
    return [float(cell.split()[0]) for cell in row[1].split("|")]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "results.md"], ids=str)
def test_the_tables_of_the_default_run_are_those_of_the_committed_metrics(page):
    metrics = json.loads((ROOT / "results" / "metrics.json").read_text())
    text, sets = page.read_text(), ["seen", "emoji", "cifar10", "digits", "average"]
    shown = [head for head in metrics["r_auroc"] if re.search(rf"^\| {head} ", text, re.MULTILINE)]
    assert {"ranking", "entropy", "norm", "neighbour-distance"} <= set(shown)
    for head in shown:
        real = [metrics["r_auroc"][head][name] for name in sets]
        assert numbers_told(text, head) == pytest.approx(real, abs=0.0051), head
    recall = [metrics["r1"]["backbone"][name] for name in sets]
    assert numbers_told(text, "R@1 of the backbone") == pytest.approx(recall, abs=0.0051)
