"""The README of a released model: what it says, what it admits, and what no name can do to it."""

import re

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from askance.card import readme
from askance.heads.catalogue import HEADS
from askance.stages import evaluate

CARD = {
    "head": "ranking",
    "seed": 1,
    "backbone": {
        "backbone": "resnet50.a1_in1k",
        "weights": "ab" * 32,
        "preprocessing": {
            "size": 224,
            "crop": 0.95,
            "interpolation": "bicubic",
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.2],
        },
        "precision": "float32",
    },
    "training": {"place": 0, "steps": 600, "loss": "cross-fitted"},
    "quantiles": [0.0] * 1001,
    "versions": {"askance": "0.1.0"},
    "about": {
        "licence": "mit",
        "seeds": [0, 1],
        "metrics": {
            "r1": {"birds": 0.25, "digits": 0.5, "average": 0.375},
            "r_auroc": {"birds": 0.75, "digits": 0.4321, "average": 0.59},
            "r_auroc_sd": {"birds": 0.0123},
            "aurc": {"birds": None, "digits": 0.2},
        },
        "data": {
            "upstream": {"name": "up", "rows": 4618, "classes": 456},
            "loss": {"classifier": "own"},
            "sets": [
                {"name": "birds", "kind": "upstream", "images": 30, "classes": 3},
                {"name": "digits", "kind": "zero-shot", "images": 20, "classes": 2},
            ],
            "versions": {"torch": "2.13.0"},
            "machine": "a | machine",
        },
    },
}


def about(**fields):
    return CARD | {"about": CARD["about"] | fields}


def on(backbone):
    return CARD | {"backbone": CARD["backbone"] | {"backbone": backbone}}


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def table(text):
    """Return the rows of the table of metrics: {its first cell: the others}."""
    lines = text.partition("## What was measured")[2].partition("\n\n- R@1")[0].splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def test_the_hub_reads_what_it_sorts_models_by():
    found = front(readme(CARD, "me/model"))
    assert found["license"] == "mit"
    assert found["library_name"] == "askance"
    assert found["pipeline_tag"] == "image-feature-extraction"
    assert found["base_model"] == "timm/resnet50.a1_in1k"
    (model,) = found["model-index"]
    values = {x["dataset"]["name"]: x["metrics"][0]["value"] for x in model["results"]}
    assert values == {"birds": 0.75, "digits": 0.4321}


@pytest.mark.parametrize("name", ["resnet50", "test_vit", "tf_efficientnet_lite0.pypi", "mine.x"])
def test_only_a_tag_of_timm_is_named_as_the_model_beneath(name):
    assert "base_model" not in front(readme(on(name), "me/model"))


def test_where_the_weights_of_the_backbone_are_is_said():
    assert "are those of `timm/resnet50.a1_in1k`" in readme(CARD, "a/b")
    assert "keep their own: `apache-2.0`, says timm" in readme(CARD, "a/b")
    assert "come from a Python package" in readme(on("tf_efficientnet_lite0.pypi"), "a/b")
    assert "must be at hand" in readme(on("resnet50"), "a/b")


def test_every_metric_is_in_the_table_as_undefined_or_not_measured_where_it_is():
    rows = table(readme(CARD, "me/model"))
    assert rows[""] == ["`birds`", "`digits`", "`average`"]
    assert rows["kind"] == ["`upstream`", "`zero-shot`", ""]
    assert rows["images"] == ["30", "20", ""]
    assert rows["R@1"] == ["0.250", "0.500", "0.375"]
    assert rows["R-AUROC"] == ["0.750 ± 0.012", "0.432", "0.590"]
    assert rows["AURC"] == ["undefined", "0.200", "not measured"]


def test_a_metric_that_is_undefined_is_not_told_to_the_hub():
    metrics = {"r_auroc": {"birds": None, "digits": 0.75}}
    text = readme(about(metrics=metrics), "me/model")
    (model,) = front(text)["model-index"]
    assert [each["dataset"]["name"] for each in model["results"]] == ["digits"]


def test_metrics_that_were_measured_are_explained_and_others_are_not():
    text = readme(CARD, "me/model")
    assert "- R@1: the share of images whose nearest other image is of the same class.\n" in text
    assert "whose nearest is of the same; a coin comes to 0.5.\n" in text
    assert "- AURC: " in text
    assert "crop" not in text.partition("## What was measured")[2].partition("## What the")[0]
    crops = readme(about(metrics={"crop_correlation": {"birds": 0.1}}), "me/model")
    assert "how much of the image it shows; a coin comes to 0.\n" in crops


def test_metrics_and_sets_where_it_is_worse_than_a_coin_are_named():
    crops = {"crop_win": {"birds": 0.4, "digits": 0.6}, "crop_correlation": {"digits": -0.01}}
    text = readme(about(metrics=CARD["about"]["metrics"] | crops), "me/model")
    assert (
        "here it is, by R-AUROC (below 0.5 on `digits`), crop wins (below 0.5 on `birds`), crop"
        " correlation (below 0 on `digits`).\n"
    ) in text
    assert "- Where R-AUROC is below 0.5, the less certain images are the ones less often" in text
    metrics = {"r_auroc": {"birds": 0.75, "digits": 0.5}}
    text = readme(about(metrics=metrics), "me/model")
    assert "below 0.5" not in text
    assert "R-AUROC is at least 0.5 on every set above" in text
    text = readme(about(metrics=metrics | crops), "me/model")
    assert "here it is, by crop wins (" in text
    assert "R-AUROC is at least 0.5 on every set above" in text


def test_what_is_not_known_is_said_and_not_made_up():
    text = readme(CARD | {"about": {}, "quantiles": None, "training": {}}, "me/model")
    assert front(text)["license"] == "unknown"
    assert "model-index" not in front(text)
    for admitted in (
        "Nothing was measured, or it is not told.",
        "so `model.percentile` is NaN",
        "What the head learned from is not told.",
        "Not told.",
        "The head's licence: `unknown`.",
    ):
        assert admitted in text
    assert "at least 0.5" not in text


def test_training_data_versions_and_machine_come_from_the_run():
    text = readme(CARD, "me/model")
    assert "| `steps` | 600 |\n| `loss` | `cross-fitted` |" in text
    assert "`place`" not in text
    assert "learned from 4618 images of 456 classes (`up`)" in text
    assert "the backbone's own classifier" in text
    assert r"`torch` `2.13.0`" in text
    assert r"on `a \| machine`." in text


def test_the_lines_of_use_load_it_by_its_name():
    assert 'model = askance.load("me/model")' in readme(CARD, "me/model")


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_a_readme_with_its_marks(name):
    text = readme(CARD | {"head": name}, "me/model")
    assert ("frozen-backbone variant" in text) == HEADS[name].of_backbone
    assert ("its own linear map" in text) == HEADS[name].mapped


def test_every_metric_of_evaluate_has_a_label(whole_run):
    from askance import places
    from askance.card import METRICS

    found = places.find(whole_run).about["metrics"]
    assert {name for name in found if not name.endswith("_sd")} <= {*METRICS, "r_auroc_difference"}
    assert evaluate.NEIGHBOUR_DISTANCE not in readme(CARD, "a/b")


def parsed(text):
    """Return the kinds of all tokens, the texts of code, and the targets of links."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])
    inner = [child for token in tokens for child in token.children or ()]
    links = [token.attrs["href"] for token in inner if token.type == "link_open"]
    code = [token.content for token in inner if token.type == "code_inline"]
    return [token.type for token in (*tokens, *inner)], code, links


@settings(max_examples=25)
@given(
    st.text(min_size=1, max_size=30) | st.text("`|\\<a>[](!)\n*_~&;#-:", min_size=1, max_size=12)
)
@example("``` | ` <script> [x](http://y) \n# z \\")
@example("a \\| b \\\\| c")
@example("`")
def test_no_text_of_a_run_can_be_more_than_a_text(text):
    def told(text):
        sets = [{"name": text, "kind": text, "images": text, "classes": text}]
        data = CARD["about"]["data"] | {"sets": sets, "machine": text, "versions": {text: text}}
        metrics = {"r_auroc": {text: 0.25}}
        card = about(data=data, metrics=metrics, licence=text, seeds=[text, {text: text}])
        return readme(card | {"training": {text: [text]}}, "me/model")

    kinds, code, links = parsed(told(text))
    expected = parsed(told("plain"))
    assert (kinds, links) == (expected[0], expected[2])
    assert len(code) == len(expected[1])
    told_to_hub = front(told(text))
    assert told_to_hub.keys() == front(told("plain")).keys()
    (found,) = told_to_hub["model-index"][0]["results"]
    assert not text.isprintable() or found["dataset"] == {"name": text, "type": text}


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": {"r_auroc": {"birds": "high"}}},
        {"metrics": {"r_auroc": 3}},
        {"metrics": []},
        {"data": []},
        {"data": {"sets": [{}]}},
        {"data": {"sets": [{"name": "birds"}]}},
        {"data": {"upstream": "up"}},
        {"seeds": 3},
    ],
)
def test_an_account_of_another_form_is_refused(fields):
    with pytest.raises(
        ValueError, match="expected metrics and data as evaluate .*mend model.about"
    ):
        readme(about(**fields), "me/model")
