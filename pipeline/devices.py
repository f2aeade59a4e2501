"""The device that was asked for, or an error: never another one in silence."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device(name: str) -> "torch.device":
    """Return the torch device called `name` ("auto": the first GPU if there is one, else the CPU).

    Raises:
        ValueError: the device that was asked for is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"expected the device {name!r}, which was asked for, but torch can't use it ({first});"
            " choose 'cpu' or 'auto', or mend the driver"
        ) from error
    return chosen
