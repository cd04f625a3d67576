"""Other mixers in chosen layers of a pretrained model (grafting, arXiv 2506.05340)."""
