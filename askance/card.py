"""The README of a released model, written from what its card tells.

Comes in: a card (docs/model.md). Goes out: Markdown with the YAML that the hub reads. Every text of
the run is shown as code, so that no name of a set or a machine can be a link, a table or HTML.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from askance.eval.figures import COIN, MARKS
from askance.eval.summary import AVERAGE
from askance.features.backbone import tagged
from askance.features.weights import PACKAGED
from askance.heads.catalogue import find

METRICS = {
    "r1": "R@1",
    "r_auroc": "R-AUROC",
    "aurc": "AURC",
    "excess_aurc": "E-AURC",
    "augrc": "AUGRC",
    "crop_win": "crop wins",
    "crop_correlation": "crop correlation",
    "mixed_r_auroc": "R-AUROC, mixed with upstream images",
    "ood_auroc": "AUROC of new against upstream images",
    "human_correlation": "correlation with people's entropy",
    "dirac_auroc": "AUROC of people's disagreement",
    "auroc_classification": "AUROC of the classifier's mistakes",
    "spearman_loss": "correlation with the loss",
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
    averaged = any(AVERAGE in metrics.get(metric, {}) for metric in METRICS)
    r_auroc = {each: metrics.get("r_auroc", {}).get(each) for each in sets}
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
        "labels": {metric: Markup(label) for metric, label in METRICS.items()},
        "columns": [*sets, AVERAGE] if averaged else [*sets],
        "seeds": about.get("seeds", []),
        "above": bool(sets) and None not in r_auroc.values(),  # where none is below
        "below": [each for each, value in r_auroc.items() if value is not None and value < COIN],
        "licence": about.get("licence", "unknown"),
        "packaged": backbone in PACKAGED,
        "tag": tag,
    }


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
