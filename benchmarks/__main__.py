"""Run every benchmark."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from benchmarks import augment, backbone, extract, feed, train

augment.main()
backbone.main()
extract.main()
feed.main()
train.main()
