"""Images to arrays: sources, shards, views, the backbone, and the feature store."""
