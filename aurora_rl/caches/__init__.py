"""Caches keep on disk what frozen networks compute once: a mask decoder's image embeddings, a teacher's features."""
