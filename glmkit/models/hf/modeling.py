"""The plain modules of all ChatGLM generations behind transformers' model classes.

A wrapper adds no arithmetic of its own: it places tokens, says who sees whom, and hands both to
the modules of `models/glm.py` or `models/chatglm.py`, which keep the original parameter names.

Shapes: B rows, T new tokens, S tokens with the cached ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ...errors import UsageError
from .. import chatglm, glm
from ..causal import CausalModel, Stack
from ..chatglm import ChatGlm
from ..prefix import beside_prefix
from .chatting import Chatting
from .complete import beginnings, is_usual, refuse_missing, unchecked
from .config import ChatGLMConfig
from .placing import Remembered, as_rows, place
from .rounding import RoundedEmbedding, RoundedLinear, round_blocks, unshare
from .settled import folder_of


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What the models of all generations share."""

    config_class: ClassVar[type] = ChatGLMConfig
    config: ChatGLMConfig
    base_model_prefix: ClassVar[str] = "transformer"
    supports_gradient_checkpointing: ClassVar[bool] = True
    _no_split_modules: Any = ("Block",)
    # A block hands its norms to its halves: those move by themselves where they are offloaded.
    _skip_keys_device_placement: Any = ("past_key_values", "norm")
    _supports_sdpa: ClassVar[bool] = True
    _can_record_outputs: Any = {"hidden_states": [glm.Block, chatglm.Block]}
    _keys_to_ignore_on_load_unexpected: Any = (
        r"transformer\.rotary_pos_emb\.inv_freq",
        r"transformer\.layers\.\d+\.attention\.rotary_emb\.inv_freq",
    )
    # Prefixes are trained, and stored, in single precision beside a base in half.
    _keep_in_fp32_modules_strict: Any = ("prefix_encoder",)
    check_files: ClassVar[Callable[[Path], None]] = staticmethod(unchecked)
    """Refuses a folder whose weight files are damaged, or no model's; `glmkit.hf` sets it."""
    _begun: ClassVar[tuple[str, ...]] = ()
    """How the names of tensors start that a folder may lack, since they are to be trained."""

    transformer: glm.Transformer | chatglm.Transformer

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        plain = config.layout.model(config.shape)
        # Kept from being a submodule: its parameters are this model's already, by the same names.
        self.__dict__["_plain"] = plain
        self.transformer = cast("glm.Transformer | chatglm.Transformer", plain.transformer)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Load a folder; where it has a P-Tuning prefix that alone learns, as in the originals.

        :raises CheckpointError: if its files are damaged, or hold not all that the model needs.
        """
        detailed = kwargs.pop("output_loading_info", False)
        source, usual = pretrained_model_name_or_path, is_usual(kwargs)
        folder = folder_of(source, kwargs.get("subfolder"))
        if folder and usual:
            cls.check_files(folder)
        kwargs["output_loading_info"] = True
        loaded = cast("tuple[Any, Any]", super().from_pretrained(source, *args, **kwargs))
        model, info = loaded
        if usual and not model._hf_peft_config_loaded:  # else the report is on the adapter
            begun = beginnings(folder, model.config.pre_seq_len)
            refuse_missing(source, info["missing_keys"], (*cls._begun, *begun))
        if model.plain.prefix is not None:
            model.requires_grad_(False)
            model.plain.prefix.requires_grad_(True)
        unshare(model)
        return loaded if detailed else model

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The earlier name of ``is_activation_checkpointing``, which peft still asks for."""
        return self.is_activation_checkpointing

    @property
    def plain(self) -> CausalModel:
        """The model without transformers, which shares all its parts with this one."""
        return cast(CausalModel, self.__dict__["_plain"])

    def get_input_embeddings(self) -> nn.Module:
        """Return the token table."""
        return self.get_submodule(self.plain.EMBEDDING)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table."""
        self.set_submodule(self.plain.EMBEDDING, value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, glm.RmsNorm):
            initialization.ones_(module.weight)
        elif not isinstance(module, (RoundedLinear, RoundedEmbedding)):
            super()._init_weights(module)

    @capture_outputs
    def _read(
        self,
        ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states (B, T, hidden) of new tokens, normed; fill the cache.

        The hidden states of all layers, where they are asked for: what the first block gets, what
        each block gives, and instead of what the last one gives, the same normed.
        """
        prefix = self.plain.prefix
        cached = 0 if cache is None else cache.get_seq_length()
        positions, mask = place(
            self.plain,
            ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cached=cached,
        )
        past = None
        if cache is not None or prefix is not None:
            past = Remembered(cache, None if prefix is None else prefix())
        if prefix is not None and not (mask is None and cached):
            mask = beside_prefix(mask, prefix.config.length, ids)
        causal = mask is None and ids.shape[1] > 1
        hidden = self.plain.hidden(ids, positions, mask=mask, causal=causal, past=past)
        normed = self.plain.norm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=normed, past_key_values=cache)

    @property
    def _recomputes(self) -> bool:
        """Whether blocks run again when gradients need them."""
        return any(
            each.gradient_checkpointing for each in self.modules() if isinstance(each, Stack)
        )

    def _cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        """Return the cache to fill, or None."""
        if given is not None and given.is_compileable:
            raise UsageError(
                "ChatGLM models take caches that grow; leave cache_implementation out, "
                "or pass a DynamicCache"
            )
        if self.training and torch.is_grad_enabled() and self._recomputes:
            return None  # a block that runs twice would store its keys twice
        wanted = self.config.use_cache if use_cache is None else use_cache
        if given is not None or not wanted or (use_cache is None and self.training):
            return given
        return DynamicCache(config=self.config)


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, Chatting, GenerationMixin):
    """A language model of any generation, under the class name of the originals."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        plain = self.plain
        self.loss_type = "ForCausalLM"
        if isinstance(plain, ChatGlm):
            self.lm_head = plain.lm_head
        self._tied_weights_keys = {f"{plain.HEAD}.weight": f"{plain.EMBEDDING}.weight"}
        if config.quantization_bit:
            self._round(config.quantization_bit)
        self.post_init()

    def _round(self, bits: int) -> None:
        tables: tuple[str, ...] = ()
        if self.config.quantization_embeddings:
            # Only parameters can be tied: table and head hold the same integers twice.
            tables, self._tied_weights_keys = (self.plain.HEAD, self.plain.EMBEDDING), {}
        round_blocks(self, bits, tables)

    def quantize(
        self,
        bits: int,
        quantize_embeddings: bool = False,
        **ignored: Any,  # noqa: ANN401
    ) -> ChatGLMForConditionalGeneration:
        """Round the weights of all blocks in place, as the original code does; return the model.

        What ``save_pretrained`` writes afterwards is in the layout of the official int4 and int8
        folders. A model that is rounded already stays as it is.

        :param bits: 4 or 8; 0 changes nothing.
        :param quantize_embeddings: also round the token table and the head.
        :raises UsageError: if ``bits`` is something else.
        """
        if bits and not self.config.quantization_bit:
            self.config.quantization_embeddings = quantize_embeddings
            self._round(bits)
            self.config.quantization_bit = bits
            self.all_tied_weights_keys = self.get_expanded_tied_weights_keys()
        return self

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.get_submodule(self.plain.HEAD)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.set_submodule(self.plain.HEAD, new_embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,  # noqa: ANN401
    ) -> CausalLMOutputWithPast:
        """Return the scores (B, T, V) of new tokens, and the loss where there are labels.

        :param input_ids: (B, T).
        :param attention_mask: (B, S), 1 = real token; also whole, (B, 1, T, S), see `placing.py`.
        :param position_ids: (B, T); (B, 2, T) for ChatGLM-6B. None: counted as in training.
        :param labels: (B, T), not shifted, -100 where there is no loss.
        :param logits_to_keep: only the last so many scores, or those at these places; 0: all.
        """
        cache = self._cache(past_key_values, use_cache)
        found = self._read(_given(input_ids), attention_mask, position_ids, cache, **kwargs)
        hidden = found.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
        )

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Generate as all of transformers' models do; takes ChatGLM-6B's original mask too."""
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4 and mask.dtype == torch.bool:
            kwargs["attention_mask"] = as_rows(mask)
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Cut off what the cache has; place ChatGLM-6B's tokens along both axes."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        if isinstance(self.plain, ChatGlm) and inputs.get("position_ids") is None:
            real = attention_mask if attention_mask is None else attention_mask.bool()
            positions = self.plain.start(input_ids, real).positions
            inputs["position_ids"] = positions[..., -inputs["input_ids"].shape[1] :]
        return inputs

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> Tensor | None:
        if isinstance(self.plain, ChatGlm):
            return None
        return cast(
            Tensor, super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, dict[str, Any]]:
        # transformers takes positions of three dimensions for (axes, B, T); ours are (B, 2, T).
        positions = kwargs.pop("position_ids", None)
        ids, rest = super()._expand_inputs_for_generation(expand_size, **kwargs)
        if positions is not None:
            rest["position_ids"] = positions.repeat_interleave(expand_size, dim=0)
        return ids, rest

    def _update_model_kwargs_for_generation(
        self,
        outputs: object,
        model_kwargs: dict[str, Any],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        before = model_kwargs.get("position_ids")
        after: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if before is not None and before.dim() == 3:
            # Along the first axis an answer stands where its blank does.
            after["position_ids"][:, 0, before.shape[-1] :] = before[:, 0, -1:]
        return after


class ChatGLMForSequenceClassification(ChatGLMPreTrainedModel):
    """A model with a head that classifies, or rates, whole rows by their last token.

    As in the original code of generation 2: a linear layer with bias, behind dropout.
    """

    _keys_to_ignore_on_load_unexpected: Any = (
        *ChatGLMPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"lm_head\.weight",
    )
    _begun: ClassVar[tuple[str, ...]] = ("classifier_head.",)

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier_head = nn.Linear(config.hidden_size, config.num_labels, bias=True)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> SequenceClassifierOutputWithPast:
        """Return the scores (B, labels) of each row's last real token.

        :param input_ids: (B, T).
        :param attention_mask: (B, T), 1 = real token; None: all are.
        :param labels: (B), classes or, for one label, numbers.
        """
        ids = _given(input_ids)
        cache = self._cache(past_key_values, use_cache)
        found = self._read(ids, attention_mask, position_ids, cache, **kwargs)
        hidden = found.last_hidden_state
        last = _last(ids, attention_mask).to(hidden.device)
        pooled = hidden[torch.arange(len(ids), device=hidden.device), last]
        logits = self.classifier_head(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
        )


def _given(ids: Tensor | None) -> Tensor:
    if ids is None:
        raise UsageError("pass input_ids (B, T); ChatGLM models place tokens by their ids")
    return ids


def _last(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return where each row's last real token is, (B)."""
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.full((len(ids),), ids.shape[1] - 1)
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    cached = attention_mask.shape[1] - ids.shape[1]
    return (places * attention_mask.bool()).argmax(-1) - cached
