"""Evaluation of language models on long contexts."""
