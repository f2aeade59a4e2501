"""Run every benchmark."""

from benchmarks import augment, auroc, backbone, extract, feed, peers, retrieve, train

augment.main()
auroc.main()
backbone.main()
extract.main()
feed.main()
peers.main()
retrieve.main()
train.main()
