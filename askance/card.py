"""The README of a released model, written from what its card tells.

Comes in: a card (docs/model.md). Goes out: Markdown with the YAML that the hub reads. Every text of
the run is shown as code, so that no name of a set or a machine can be a link, a table or HTML.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from askance.eval.figures import COIN, MARKS
from askance.eval.summary import AVERAGE
from askance.features.backbone import tagged
from askance.features.weights import PACKAGED
from askance.heads.catalogue import find


class Metric(NamedTuple):
    """How a metric is told: its name, what it is, and what a coin comes to, if anything."""

    label: str
    meaning: str
    coin: float | None = None


METRICS = {
    "r1": Metric("R@1", "the share of images whose nearest other image is of the same class"),
    "r_auroc": Metric(
        "R-AUROC",
        "the chance that a random image whose nearest is of another class is more uncertain than a"
        " random one whose nearest is of the same",
        COIN,
    ),
    "aurc": Metric(
        "AURC",
        "the share of images whose nearest is of another class among the most certain ones, the"
        " mean over all shares kept; less is better",
    ),
    "excess_aurc": Metric("E-AURC", "AURC less that of the best order; less is better"),
    "augrc": Metric(
        "AUGRC",
        "the share of images that are kept and whose nearest is of another class, the mean over all"
        " shares kept; less is better",
    ),
    "crop_win": Metric(
        "crop wins", "the share of images that are less certain when they are cropped", COIN
    ),
    "crop_correlation": Metric(
        "crop correlation",
        "the rank correlation of a crop's certainty with how much of the image it shows",
        0,
    ),
    "mixed_r_auroc": Metric(
        "R-AUROC, mixed with upstream images", "R-AUROC among as many upstream images", COIN
    ),
    "ood_auroc": Metric(
        "AUROC of new against upstream images",
        "the chance that a random image of the set is more uncertain than a random upstream one",
        COIN,
    ),
    "human_correlation": Metric(
        "correlation with people's entropy",
        "the rank correlation of uncertainty with the entropy of people's votes",
        0,
    ),
    "dirac_auroc": Metric(
        "AUROC of people's disagreement",
        "the chance that an image people disagree on is more uncertain than one they agree on",
        COIN,
    ),
    "auroc_classification": Metric(
        "AUROC of the classifier's mistakes",
        "the chance that an image the upstream classifier gets wrong is more uncertain than one it"
        " gets right",
        COIN,
    ),
    "spearman_loss": Metric(
        "correlation with the loss",
        "the rank correlation of uncertainty with the loss of the upstream classifier",
        0,
    ),
}
TAGS = ["askance", "image-feature-extraction", "uncertainty-estimation"]


def readme(card: dict[str, Any], name: str) -> str:
    """Write the README of a release that is called `name` on the hub.

    Raises:
        ValueError: what the card tells `about` the model is not as evaluate has it.
    """
    try:
        return PAGE.get_template("card.md").render(_context(card, name))
    except (jinja2.UndefinedError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"expected metrics and data as evaluate tells them, got {error!r}: mend model.about"
        ) from error


def _context(card: dict[str, Any], name: str) -> dict[str, Any]:
    about, head = card["about"], find(card["head"])
    metrics, data = about.get("metrics", {}), about.get("data", {})
    backbone = card["backbone"]["backbone"]
    sets = {each["name"]: each for each in data.get("sets", [])}
    told = {metric: each for metric, each in METRICS.items() if metric in metrics}
    averaged = any(AVERAGE in metrics[metric] for metric in told)
    r_auroc = {each: metrics.get("r_auroc", {}).get(each) for each in sets}
    below = _below(metrics, list(sets))
    tag = tagged(backbone)
    return {
        "front": Markup(_front(card, r_auroc, tag.hf_hub_id if tag else None)),
        "load": Markup(f"askance.load({json.dumps(name)})"),
        "card": card,
        "head": Markup((inspect.getdoc(head) or "").partition("\n")[0]),  # our own words
        "remarks": [
            Markup(said)
            for said, holds in zip(MARKS.values(), (head.of_backbone, head.mapped), strict=True)
            if holds
        ],
        "upstream": data.get("upstream"),
        "loss": data.get("loss", {}).get("classifier"),
        "versions": data.get("versions", card["versions"]),
        "machine": data.get("machine"),
        "sets": sets,
        "facts": [Markup(fact) for fact in ("kind", "images", "classes")],
        "metrics": metrics,
        "told": told,
        "columns": [*sets, AVERAGE] if averaged else [*sets],
        "seeds": about.get("seeds", []),
        "above": bool(sets) and None not in r_auroc.values() and "r_auroc" not in below,
        "below": below,
        "licence": about.get("licence", "unknown"),
        "packaged": backbone in PACKAGED,
        "tag": tag,
    }


def _below(metrics: dict[str, Any], sets: list[str]) -> dict[str, list[str]]:
    """Return on which sets each metric is worse than a coin, of those that are on any."""
    below = {}
    for metric, (_, _, coin) in METRICS.items():
        values = {each: metrics.get(metric, {}).get(each) for each in sets}
        if coin is not None:
            below[metric] = [each for each, x in values.items() if x is not None and x < coin]
    return {metric: worse for metric, worse in below.items() if worse}


def _front(card: dict[str, Any], r_auroc: dict[str, float | None], base: str | None) -> str:
    """Return the YAML; what was not measured, or is undefined, is not in it."""
    results = [
        EvalResult("image-feature-extraction", name, name, "r_auroc", value, metric_name="R-AUROC")
        for name, value in r_auroc.items()
        if value is not None
    ]
    told = ModelCardData(
        base_model=base,
        eval_results=results or None,
        library_name="askance",
        license=card["about"].get("licence", "unknown"),
        model_name=f"{card['head']} on {card['backbone']['backbone']}",
        pipeline_tag="image-feature-extraction",
        tags=TAGS,
    )
    return told.to_yaml()


def _code(value: Any) -> Any:  # noqa: ANN401 - whatever a card holds
    """Show a text as code, within a fence that is longer than any in it."""
    if isinstance(value, (int, float, Markup)):
        return value
    text = re.sub(r"[\x00-\x20\x7f-\xa0\u2028\u2029]+", " ", str(value)) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}".replace("|", r"\|"))


def _measured(metrics: dict[str, Any], metric: str, name: str) -> Markup:
    """Show a metric of a set, with its spread over seeds where there are several."""
    if name not in metrics.get(metric, {}):
        return Markup("not measured")
    value, spread = metrics[metric][name], metrics.get(f"{metric}_sd", {}).get(name)
    if value is None:
        return Markup("undefined")
    return Markup(f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}")


PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # and so `finalize` sees which texts are ours: they are Markup
    finalize=_code,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGE.filters["measured"] = _measured
