"""Braid models as Hugging Face models: importing this registers them with AutoConfig and AutoModelForCausalLM."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from lm.hf.cache import BraidCache
from lm.hf.configuration import BraidConfig
from lm.hf.modeling import BraidForCausalLM, BraidModel

__all__ = ["BraidCache", "BraidConfig", "BraidForCausalLM", "BraidModel"]

AutoConfig.register(BraidConfig.model_type, BraidConfig)
AutoModel.register(BraidConfig, BraidModel)
AutoModelForCausalLM.register(BraidConfig, BraidForCausalLM)
