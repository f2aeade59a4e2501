"""The stages of the graph, one file each: `run` does the work, `main` is its command."""
