"""The door to transformers: ``import glmkit.hf; glmkit.hf.register()``.

Afterwards `AutoConfig`, `AutoTokenizer`, `AutoModel`, `AutoModelForCausalLM` and
`AutoModelForSequenceClassification` load the original folders of all ChatGLM generations, and no
code out of those folders is run.
"""

from __future__ import annotations

from pathlib import Path

from .errors import CheckpointError, MissingExtraError


def register() -> None:
    """Tell transformers about glmkit's models; calling it again changes nothing.

    :raises MissingExtraError: if transformers is not installed.
    """
    try:
        import transformers
        from transformers.models.auto import tokenization_auto
    except ImportError as error:
        raise MissingExtraError(
            "loading models through transformers", "transformers", "hf"
        ) from error
    from .models.hf.config import ChatGLMConfig
    from .models.hf.modeling import (
        ChatGLMForConditionalGeneration,
        ChatGLMForSequenceClassification,
        ChatGLMPreTrainedModel,
    )
    from .models.hf.tokenization import ChatGLM4Tokenizer, ChatGLMTokenizer

    ChatGLMPreTrainedModel.check_files = staticmethod(_check_files)
    # By name only: registered beside a configuration, a tokenizer gives way to code in the folder.
    for tokenizer in (ChatGLMTokenizer, ChatGLM4Tokenizer):
        tokenization_auto.REGISTERED_TOKENIZER_CLASSES[tokenizer.__name__] = tokenizer
    transformers.AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
    for auto in (
        transformers.AutoModel,
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSeq2SeqLM,
    ):
        auto.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
    transformers.AutoModelForSequenceClassification.register(
        ChatGLMConfig, ChatGLMForSequenceClassification, exist_ok=True
    )


def _check_files(folder: Path) -> None:
    """Look at the headers of a folder's weights before transformers reads them.

    :raises CheckpointError: if they are damaged, hold code, or are a prefix without a model.
    """
    from .runtime.headers import is_prefix
    from .runtime.weights import Weights, has_weights

    if has_weights(folder) and is_prefix(Weights(folder)):
        raise CheckpointError(
            f"{folder} holds a P-Tuning prefix, not a model: load the model that it was trained "
            f"on with config=AutoConfig.from_pretrained({str(folder)!r}), then put the prefix in "
            "with model.transformer.prefix_encoder.load_state_dict(...)"
        )
