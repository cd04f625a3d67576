"""Braid: hybrid long-context language models, from pretraining to generation."""
