"""torchvision, made importable beside a torch build it was not compiled for.

timm and torchmetrics import torchvision at the top. PyPI's torchvision registers compiled operators
that only load beside the matching CUDA build of torch; beside a CPU-only torch its import fails,
although nothing askance uses needs those operators.
"""

import importlib
import sys
from types import ModuleType

_declared: list[object] = []  # keeps the operator library alive: its operators vanish with it


def import_torchvision() -> ModuleType:
    """Import torchvision; call this before timm or torchmetrics is imported.

    A torchvision that works is left untouched. Where the import fails because a compiled operator
    is missing, the two operators torchvision describes at import are declared without a kernel
    (calling them still raises) and the import is repeated.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    import torch

    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision")
