"""``chat`` and ``stream_chat`` of the original scripts, for all generations.

The tokenizer says which generation talks. Two things differ from the original code: an answer that
ends for its length keeps its last token, and a history that is passed in is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, PreTrainedConfig
from transformers.cache_utils import Cache

from ...errors import UsageError
from ..formats import FORMATS
from . import history as conversations
from .tokenization import ChatGLMTokenizer


class Chatting:
    """What a model that generates can be asked."""

    config: PreTrainedConfig
    device: Any
    generate: Any
    prepare_inputs_for_generation: Any
    _prepare_generation_config: Any
    _prepare_special_tokens: Any
    _get_logits_processor: Any
    __call__: Any

    def chat(
        self,
        tokenizer: ChatGLMTokenizer,
        query: str,
        history: Sequence[Any] | None = None,
        role: str = "user",
        *,
        max_length: int | None = None,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Any, list[Any]]:
        """Answer a question; return what to show, and the history with it.

        :param history: what an earlier call returned: (question, answer) pairs for ChatGLM-6B and
            ChatGLM2, dictionaries with ``role`` and ``content`` for ChatGLM3 and GLM-4.
        :param role: who asks; ``"observation"`` hands over what a tool found.
        :param max_length: of prompt and answer, in tokens; None: as the generation's original.
        :param kwargs: for ``generate``.
        """
        earlier = list(history or ())
        row = _checked(tokenizer)._row(tokenizer._asked(query, earlier, role)).to(self.device)
        options = _options(tokenizer.family, max_length, do_sample, top_p, temperature, kwargs)
        stops = _stops(tokenizer, options)
        found = self.generate(
            **row,
            num_beams=num_beams,
            do_sample=do_sample,
            eos_token_id=stops,
            logits_processor=logits_processor,
            **options,
        )
        new = found[0, row["input_ids"].shape[1] :].tolist()
        return conversations.answered(
            tokenizer.family, _text(tokenizer, new, stops), query, earlier, role
        )

    def stream_chat(
        self,
        tokenizer: ChatGLMTokenizer,
        query: str,
        history: Sequence[Any] | None = None,
        role: str = "user",
        past_key_values: Cache | None = None,
        *,
        max_length: int | None = None,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: LogitsProcessorList | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a question token by token: yield (all to show so far, the history with it).

        :param past_key_values: the cache that an earlier call yielded with this history; only the
            question is read then. It grows in place.
        :param return_past_key_values: yield the cache, too.
        """
        earlier = list(history or ())
        ids = _next_ids(_checked(tokenizer), query, earlier, role, past_key_values)
        options = _options(tokenizer.family, max_length, do_sample, top_p, temperature, kwargs)
        stops = _stops(tokenizer, options)
        cache = DynamicCache(config=self.config) if past_key_values is None else past_key_values
        row = torch.tensor([ids], device=self.device)
        tokens = self._tokens(row, cache, logits_processor, do_sample=do_sample, **options)
        for answer in _answers(tokenizer, tokens, stops):
            shown = conversations.answered(tokenizer.family, answer, query, earlier, role)
            yield (*shown, cache) if return_past_key_values else shown

    def _tokens(
        self,
        ids: Tensor,
        cache: Cache,
        given: LogitsProcessorList | None,
        **options: Any,  # noqa: ANN401
    ) -> Iterator[int]:
        """Yield tokens behind ``ids`` (1, T) and what the cache holds, up to the length allowed."""
        config, _ = self._prepare_generation_config(None, **options)
        self._prepare_special_tokens(config, True, device=ids.device, batch_size=1)
        held = cache.get_seq_length()
        if config.max_new_tokens is not None:
            config.max_length = held + ids.shape[1] + config.max_new_tokens
        processors = self._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=ids.shape[1],
            encoder_input_ids=ids,
            logits_processor=LogitsProcessorList() if given is None else given,
            device=str(ids.device),
            model_kwargs={},
        )
        fresh = ids.shape[1]
        while held + ids.shape[1] < config.max_length:
            with torch.no_grad():
                inputs = self.prepare_inputs_for_generation(
                    ids, next_sequence_length=fresh, past_key_values=cache, use_cache=True
                )
                scores = self(**inputs, logits_to_keep=1).logits[:, -1].float()
                scores = processors(ids, scores)
                if config.do_sample:
                    token = torch.multinomial(scores.softmax(-1), 1)
                else:
                    token = scores.argmax(-1, keepdim=True)
            ids, fresh = torch.cat((ids, token.to(ids)), dim=-1), 1
            yield int(token)


def _checked(tokenizer: object) -> ChatGLMTokenizer:
    if not isinstance(tokenizer, ChatGLMTokenizer):
        raise UsageError(
            f"chat() needs a tokenizer that glmkit.hf registered, got {type(tokenizer).__name__}; "
            "call glmkit.hf.register() before AutoTokenizer.from_pretrained(...)"
        )
    return tokenizer


def _next_ids(
    tokenizer: ChatGLMTokenizer,
    query: str,
    earlier: Sequence[Any],
    role: str,
    cache: Cache | None,
) -> list[int]:
    """Return what the model has not read yet."""
    if cache is None or not cache.get_seq_length():
        return tokenizer._asked(query, earlier, role)
    if tokenizer.family == "chatglm":
        raise UsageError(
            "ChatGLM-6B reads a conversation from both sides and cannot go on behind a cache; "
            "pass the history alone"
        )
    if tokenizer.family == "chatglm2":
        # The answer before ends without a space, and so must not this text begin with one.
        return tokenizer.inner.encode(conversations.continued(query, len(earlier)))[1:]
    return tokenizer._asked(query, (), role)


def _options(
    family: str,
    max_length: int | None,
    do_sample: bool,
    top_p: float | None,
    temperature: float | None,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Return what ``generate`` shall know, with the generation's own defaults."""
    options = dict(given)
    if options.get("max_new_tokens") is None:
        options["max_length"] = max_length or conversations.LONGEST.get(family, 8192)
    if do_sample:
        published = FORMATS[family]
        options["top_p"] = published.top_p if top_p is None else top_p
        options["temperature"] = published.temperature if temperature is None else temperature
    return options


def _stops(tokenizer: ChatGLMTokenizer, options: dict[str, Any]) -> list[int]:
    """Take the stop ids out of the options; without any, those of the generation."""
    given = options.pop("eos_token_id", None)
    if given is None:
        return conversations.stops(tokenizer.family, tokenizer.inner)
    return [given] if isinstance(given, int) else list(given)


def _text(tokenizer: ChatGLMTokenizer, new: list[int], stops: list[int]) -> str:
    """Return the text of an answer, without the token that ended it."""
    ended = bool(new) and new[-1] in stops
    return tokenizer.inner.decode(new[:-1] if ended else new, skip_special=False)


def _answers(tokenizer: ChatGLMTokenizer, tokens: Iterator[int], stops: list[int]) -> Iterator[str]:
    """Yield an answer as it grows, up to the token that ends it."""
    new: list[int] = []
    said: str | None = None
    for token in tokens:
        new.append(token)
        answer = _text(tokenizer, new, stops)
        ended = token in stops
        # Half a character is held back; a stop token adds nothing to what was shown.
        if not answer.endswith("\ufffd") and not (ended and answer == said):
            said = answer
            yield answer
        if ended:
            return
