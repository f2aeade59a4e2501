"""The `askance release`, `push` and `pull` commands: models as folders, and on a model hub.

A token, where one is needed, comes from the environment (`HF_TOKEN`) or from `hf auth login`.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from askance.pipeline.artifacts import write_bytes
from askance.pipeline.command import command
from askance.stages import options as o

if TYPE_CHECKING:
    from askance.model import Model

NAME = re.compile(r"(?!.*\.safetensors$)[\w.-]+/[\w.-]+")  # owner/name; never a lost head's path
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
MENDS = {
    401: "log in by `hf auth login`, or set HF_TOKEN",
    403: "the token must be allowed this: make another, and set HF_TOKEN or `hf auth login`",
    404: "check the name and the revision; a private one needs `hf auth login` or HF_TOKEN",
    None: "check the network, HF_ENDPOINT and HF_HUB_OFFLINE",
}

Name = Annotated[str, typer.Argument(help="of the model on the hub: owner/name")]
Licence = Annotated[
    str, typer.Option(help="an SPDX id (mit, apache-2.0), or other; if not given, as it was told")
]


@command
def release(
    source: o.ModelSource,
    folder: Annotated[Path, typer.Argument(help="to write: config.json, tensors and README.md")],
    *,
    head: o.HeadName = "",
    seed: o.HeadSeed = None,
    weights: o.ModelWeights = "",
    licence: Licence = "",
) -> None:
    """Write a model as a folder that others can load: its head, its card and a README."""
    model = _licensed(source, weights, head, seed, licence)
    model.save_pretrained(folder)
    print(f'{folder}: {_what(model.card())}\naskance.load("{folder}")')


@command
def push(
    source: o.ModelSource,
    name: Name,
    *,
    head: o.HeadName = "",
    seed: o.HeadSeed = None,
    weights: o.ModelWeights = "",
    licence: Licence = "",
    private: Annotated[bool, typer.Option(help="if it is new: seen by its owner alone")] = False,
    revision: Annotated[str, typer.Option(help="the branch; it must be there")] = "main",
    message: Annotated[str, typer.Option(help="of the commit")] = "",
) -> None:
    """Release a model and put it on the hub; its place there is made if need be."""
    from huggingface_hub import HfApi

    _check_name(name)
    model = _licensed(source, weights, head, seed, licence)
    what, api = _what(model.card()), HfApi()
    # Not by the mixin's push_to_hub, whose temporary files outlive a failure.
    with TemporaryDirectory() as made:
        model.save_pretrained(made, model_card_kwargs={"name": name})
        with _answered(f"{name} on the hub to take the model"):
            api.create_repo(name, private=private or None, exist_ok=True)  # None: owner's default
            commit = api.upload_folder(
                repo_id=name, folder_path=made, commit_message=message or what, revision=revision
            )
    print(f'{commit}\n{what}\naskance.load("{name}")')


@command
def pull(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="to write the model's files to")],
    *,
    revision: Annotated[str, typer.Option(help="a branch, a tag or a commit")] = "main",
) -> None:
    """Download a model's files from the hub and check them; its backbone is fetched when loaded."""
    from askance.pipeline.artifacts import read_json
    from askance.places import CARD, find

    _check_name(name)
    with placed(folder) as made:
        fetch(name, revision=revision, local_dir=made)
        try:
            find(made)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(str(error).replace(str(made), name)) from error
        what = _what(read_json(made / CARD))
    print(f'{folder}: {what}\naskance.load("{folder}")')


def fetch(name: str, **options: Any) -> Path:  # noqa: ANN401 - the library's own
    """Download the files of a model on the hub, unless they are here; return their folder.

    `options` are those of `huggingface_hub.snapshot_download`: a revision, a place, a token.

    Raises:
        OSError: there is no such model, or the hub can't be reached or refuses.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    from askance.places import FILES

    class OnTerminals(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            super().__init__(*args, **kwargs | {"disable": None})

    options |= {"allow_patterns": list(FILES), "tqdm_class": OnTerminals}
    with _answered(f"{name} here or on the hub"):
        folder = snapshot_download(name, **options)  # nosec B615  # the caller names the revision
    return Path(folder)


@contextmanager
def _answered(expected: str) -> Iterator[None]:
    """Say in one line what the hub, or the way to it, refused."""
    from huggingface_hub import errors

    http = errors.HTTPError  # type: ignore[attr-defined]  # of whichever client the library uses
    lost = errors.LocalEntryNotFoundError
    failures = (http, lost, errors.FileMetadataError, errors.OfflineModeIsEnabled)
    try:
        yield
    except (*failures, json.JSONDecodeError) as error:
        # Of what isn't here either, the cause: it kept the library from asking.
        cause = error.__cause__ if isinstance(error, lost) and error.__cause__ else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        lines = str(cause).strip().splitlines() or [""]
        mend = MENDS.get(status, "try again later")
        raise OSError(
            f"expected {expected}, got {type(cause).__name__}: {lines[0][:200]}; {mend}"
        ) from error


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"expected a name on the hub as owner/name, got {name!r}")


def _licensed(source: str, weights: str, head: str, seed: int | None, licence: str) -> "Model":
    """Load the model to release, and say of its licence what is told.

    Raises:
        ValueError: not a licence's id; and as `askance.load`.
    """
    from askance.model import load

    licence = licence.lower()
    if licence and not _known(licence):
        raise ValueError(
            f"expected --licence as an SPDX id or other, got {licence!r}: spdx.org/licenses lists"
            " the ids"
        )
    model = load(source, weights, head=head, seed=seed)
    if licence:
        model.about["licence"] = licence
    if "licence" not in model.about:
        print("no licence is told, and without one nobody may use the model: add --licence")
    return model


def _known(licence: str) -> bool:
    """Tell whether a licence, in small letters, is `other` or one that SPDX lists."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if not LICENCE.fullmatch(licence):  # an expression of several, say
        return False
    try:
        return licence == "other" or bool(canonicalize_license_expression(licence))
    except InvalidLicenseExpression:
        return False


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """Yield a folder to make a model's files in, which are then put into `folder`.

    Raises:
        ValueError: there is something else in `folder`.
    """
    from askance.places import CARD, FILES, FORMAT

    card = folder / CARD
    ours = card.is_file() and FORMAT.encode() in card.read_bytes()
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise ValueError(f"expected a new folder, or a model's, got {folder} with other files")
    with TemporaryDirectory() as made:
        yield Path(made)
        for name in FILES:
            if (path := Path(made, name)).is_file():
                write_bytes(folder / name, path.read_bytes())
            else:  # of the model that was here
                (folder / name).unlink(missing_ok=True)


def _what(card: dict[str, Any]) -> str:
    """Say in one line what a card is of, with nothing in it that a terminal would obey."""
    licence = card["about"].get("licence", "unknown")
    told = f"{card['head']} (seed {card['seed']}) on {card['backbone']['backbone']}"
    return ascii(f"{told}, licence {licence}")[1:-1]


COMMANDS: dict[str, Callable[..., None]] = {"release": release, "push": push, "pull": pull}
