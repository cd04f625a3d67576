"""A trained model as a Hugging Face folder that loads with or without this project installed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from lm import __version__
from lm.data.tokenizers import Tokenizer
from lm.hf.bundle import AUTO_MAP, write_remote_code
from lm.hf.configuration import BraidConfig
from lm.hf.folders import written_whole
from lm.hf.loading import loading
from lm.hf.modeling import BraidForCausalLM
from lm.hf.tokenizer import save_fast_tokenizer
from lm.model.options import ModelOptions

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [braid]
---

# {name}

A hybrid language model: {parameters:,} parameters in {layers} layers, `{pattern}`.

| mixer | kind | one layer sees |
|---|---|---|
{mixers}

Trained on {tokens:,} tokens in {steps:,} steps; context {context:,} tokens, vocabulary {vocabulary:,}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```

`trust_remote_code=True` runs `modeling_braid.py` of this folder. Where Braid is installed, `import lm.hf` before
loading takes its place. Written by Braid {version}.
"""


@dataclass(frozen=True)
class Training:
    """What the model card says of how the weights came about."""

    steps: int
    tokens: int


def export_model(
    folder: Path,
    options: ModelOptions,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    training: Training,
    ends: Sequence[int] = (),
    generation: GenerationConfig | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Writes configuration, weights, tokenizer, code and card into `folder`, over those of an earlier export.

    options: resolved. weights: by the names of `LanguageModel`'s parameters, a tied one once; saved as they are.
    ends: ids that end generation beside the tokenizer's eos. generation: of the model that this one was made of.
    Files of other names stay. What cannot be written leaves the folder as it was.

    Raises:
        UserError: the tokenizer has no exact Hugging Face form.
    """
    with written_whole(folder) as written:
        model = in_memory(options, weights, tokenizer, ends, generation)
        with loading():
            model.save_pretrained(written, max_shard_size=max_shard_size)
        save_fast_tokenizer(tokenizer, written, options.max_position_embeddings or model.config.max_position_embeddings)
        write_remote_code(written)
        (written / "README.md").write_text(_card(folder.absolute().name, model, options, training), encoding="utf-8")


def in_memory(
    options: ModelOptions,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    ends: Sequence[int] = (),
    generation: GenerationConfig | None = None,
) -> BraidForCausalLM:
    """The model that `export_model` writes; it shares the memory of the weights, of which padding is left out."""
    own_rows = ("embed_tokens.weight", "lm_head.weight")
    kept = {name: value[: options.vocab_size] if name.endswith(own_rows) else value for name, value in weights.items()}
    config = BraidConfig.from_options(
        options,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        auto_map=dict(AUTO_MAP),
    )
    with torch.device("meta"), no_init_weights():
        model = BraidForCausalLM(config)
    missing, unexpected = model.load_state_dict(kept, strict=False, assign=True)
    model.tie_weights()
    if unexpected or any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"the weights do not fit the model: missing {missing}, unexpected {unexpected}")
    if generation is not None:
        model.generation_config = copy.deepcopy(generation)
    end_generation_at(model, [tokenizer.eos_id, *ends])
    return model


def end_generation_at(model: PreTrainedModel, ids: Iterable[int]) -> None:
    """Makes generation end at these tokens beside those that the model's generation configuration lists already."""
    known = model.generation_config.eos_token_id
    listed = known if isinstance(known, list) else [] if known is None else [known]
    ends = list(dict.fromkeys([*listed, *ids]))
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends


def _card(name: str, model: BraidForCausalLM, options: ModelOptions, training: Training) -> str:
    return _CARD.format(
        name=name,
        parameters=model.num_parameters(),
        layers=options.num_hidden_layers,
        pattern=options.layers,
        mixers="\n".join(f"| {key} | {mixer.kind} | {mixer.sees} |" for key, mixer in options.mixers.items()),
        tokens=training.tokens,
        steps=training.steps,
        context=model.config.max_position_embeddings,
        vocabulary=options.vocab_size,
        version=__version__,
    )
