"""Braid models as transformers models: the trainer's layers behind `from_pretrained`, `generate` and `pipeline`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from kernels.precision import product_dtype
from lm.hf.cache import BraidCache
from lm.hf.configuration import BraidConfig
from lm.hf.rows import Rows, arrange, real_tokens, restarts
from lm.model.block import Block
from lm.model.decoder import DecoderLayers, Head
from lm.model.documents import Documents
from lm.model.mixers import Mixer
from lm.model.short_conv import ShortConvolution


class BraidPreTrainedModel(PreTrainedModel):
    """What the decoder alone and the language model share."""

    config: BraidConfig
    config_class = BraidConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)
    _skip_keys_device_placement = ("past_key_values",)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises weights that no checkpoint gave; weights that one gave stay as they are."""
        std = self.config.initializer_range
        if isinstance(module, Mixer):
            loaded = {p: p.detach().clone() for p in module.parameters() if getattr(p, "_is_hf_initialized", False)}
            module.init_weights(std)
            with torch.no_grad():
                for parameter, value in loaded.items():
                    parameter.copy_(value)
        elif isinstance(module, (nn.Linear, nn.Embedding, Head)):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, ShortConvolution):
            module.init_weights()

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # Of custom code, transformers takes a module without parameters of its own for one that is loaded.
        super()._initialize_weights(module, is_custom_code and not isinstance(module, Mixer))

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = torch.utils.checkpoint.checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        for module in self.modules():
            if isinstance(module, BraidModel):
                module.gradient_checkpointing, module.checkpoint_every = enable, every_n_layers
                module._gradient_checkpointing_func = gradient_checkpointing_func

    @property
    def _is_stateful(self) -> bool:
        """Whether drafted tokens cannot be taken back, so that assisted decoding is refused."""
        return not all(module.croppable for module in self.modules() if isinstance(module, Block))


class BraidModel(BraidPreTrainedModel, DecoderLayers):
    """The decoder: token ids or embeddings in, hidden states out."""

    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, config: BraidConfig) -> None:
        PreTrainedModel.__init__(self, config)
        DecoderLayers.build(self, config.to_options())
        self.gradient_checkpointing = False
        self.checkpoint_every = 1
        PreTrainedModel.post_init(self)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: BraidCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        documents: Documents | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [rows, columns, hidden_size] of `input_ids` or `inputs_embeds` [rows, columns(, hidden_size)].

        attention_mask: [rows, columns seen so far], 0 for padding on either side. position_ids mark packed documents:
        one begins wherever they do not go on; such a row cannot enter a cache. documents: given instead of both, those
        of the one row, which has neither padding nor a past.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if output_attentions:
            raise ValueError("output_attentions: Braid's mixers never form a matrix of attention weights")
        self._check_devices()
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        shape = (x.shape[0], x.shape[1])
        real = real_tokens(attention_mask, shape[1])
        begins = None if documents is not None else restarts(position_ids, shape, real)
        cache = self._cache(past_key_values, use_cache, packed=begins is not None or documents is not None)
        layers = None if cache is None else cache.open(self, shape[0], product_dtype(x), x.device)
        if documents is None:
            rows = arrange(shape, real, begins, None if layers is None else layers.seen, x.device)
        else:
            rows = Rows(shape, None, documents)

        seen: list[Tensor] = []
        keep = (
            seen
            if output_hidden_states or (output_hidden_states is None and self.config.output_hidden_states)
            else None
        )
        hidden = rows.restore(self.run(rows.flatten(x), rows.documents, layers, self._wrap(rows, keep)))
        if cache is not None:
            cache.note(shape[1], real)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=None if keep is None else (*keep, hidden),
        )

    def _check_devices(self) -> None:
        """Raises ValueError where a device_map has hooked the layers to several devices: a stream is on one."""
        hooks = (getattr(module, "_hf_hook", None) for module in (self.embed_tokens, *self.layers, self.norm))
        devices = {str(device) for hook in hooks if (device := getattr(hook, "execution_device", None)) is not None}
        if len(devices) > 1:
            raise ValueError(
                f"device_map spreads the layers over {', '.join(sorted(devices))}; they must run on one device: "
                'load the model with device_map={"": 0}, or another device'
            )

    def _cache(self, given: Any, use_cache: bool | None, packed: bool) -> BraidCache | None:
        if given is not None and not isinstance(given, BraidCache):
            raise TypeError(f"past_key_values must be a BraidCache; got {type(given).__name__}")
        if packed and (use_cache or given is not None):
            raise ValueError(
                "packed documents cannot be cached: where position_ids start anew inside a row, or documents are "
                "given, leave out past_key_values and use_cache"
            )
        if given is not None:
            return given
        wanted = self.config.use_cache and not self.training and not packed if use_cache is None else use_cache
        return BraidCache() if wanted and not (self.gradient_checkpointing and self.training) else None

    def _wrap(self, rows: Rows, keep: list[Tensor] | None) -> Callable[[int, Block], Callable[..., Tensor]] | None:
        """Recomputes every `checkpoint_every`-th layer in backward, and notes what enters each layer, when asked."""
        recompute = self.gradient_checkpointing and self.training
        if not recompute and keep is None:
            return None

        def wrap(index: int, layer: Block) -> Callable[..., Tensor]:
            call: Callable[..., Tensor] = layer
            if recompute and index % self.checkpoint_every == 0:
                call = partial(self._gradient_checkpointing_func, layer.__call__)

            def noted(x: Tensor, *rest: Any) -> Tensor:
                if keep is not None:
                    keep.append(rows.restore(x))
                return call(x, *rest)

            return noted

        return wrap


class BraidForCausalLM(BraidPreTrainedModel, GenerationMixin):
    """The language model: logits, loss and generation."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - the form transformers reads

    def __init__(self, config: BraidConfig) -> None:
        super().__init__(config)
        self.model = BraidModel(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> Head:
        return self.lm_head

    def set_output_embeddings(self, value: Head) -> None:
        self.lm_head = value

    def _get_resized_lm_head(self, old_lm_head: Head, *args: Any, **kwargs: Any) -> Head:
        """The head with more or fewer rows; transformers resizes an nn.Linear, which a Head is not."""
        rows, width = old_lm_head.weight.shape
        linear = nn.Linear(width, rows, bias=False, device="meta")
        linear.weight = old_lm_head.weight
        resized = super()._get_resized_lm_head(linear, *args, **kwargs)
        if resized is linear:
            return old_lm_head
        head = Head(resized.in_features, resized.out_features)
        head.weight = resized.weight
        return head

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: BraidCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [rows, kept columns, vocab_size], and the shifted cross-entropy of labels [rows, columns] if given.

        logits_to_keep: the last so many columns, or an index of columns; 0 keeps all.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=kwargs.pop("output_hidden_states", None),
            output_attentions=kwargs.pop("output_attentions", None),
        )
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, columns])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation '{generation_config.cache_implementation}' does not fit a hybrid: its layers "
                "keep windows and states of their own; leave it out"
            )
        if model_kwargs.get("past_key_values") is not None:
            model_kwargs["past_key_values"]._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = BraidCache()
