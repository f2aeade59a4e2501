"""Run the benchmarks; `evaluate` is about a run's results, and `joint` an experiment of hours."""

from benchmarks import (
    augment,
    auroc,
    backbone,
    extract,
    feed,
    model,
    onnx,
    peers,
    retrieve,
    score,
    serve,
    train,
)

augment.main()
auroc.main()
backbone.main()
extract.main()
feed.main()
model.main()
onnx.main()
peers.main()
retrieve.main()
score.main()
serve.main()
train.main()
