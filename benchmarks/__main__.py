"""Run every benchmark."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from benchmarks import augment, auroc, backbone, extract, feed, peers, retrieve, train

augment.main()
auroc.main()
backbone.main()
extract.main()
feed.main()
peers.main()
retrieve.main()
train.main()
