"""Arrays to numbers: retrieval, metrics, and their intervals."""
