"""Context extension of pretrained models: LongLoRA (arXiv 2309.12307) for Hugging Face's causal models and Braid's."""
