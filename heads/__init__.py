"""Embeddings and losses to a head: what turns an embedding into an uncertainty."""
