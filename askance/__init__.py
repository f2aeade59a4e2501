"""askance: pretrained visual uncertainties.

`embedding, uncertainty = model(image)` for any frozen backbone: one number per image that says how
likely its representation is to be wrong. The public names are imported when first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name is.
_PUBLIC = {
    "Model": "askance.model",
    "UncertaintyScorer": "askance.scorer",
    "load": "askance.model",
    "open_store": "askance.features.store",
}
__all__ = ["Model", "UncertaintyScorer", "__version__", "load", "metrics", "open_store"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "metrics":
        return import_module("askance.metrics")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'askance' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
