"""The configuration of every original ChatGLM folder, as transformers wants it.

Generations 1 to 4 share the model type "chatglm"; which one a folder holds, `layouts.py` says.
Every field that a config.json brings is kept, and written back by ``save_pretrained``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ...errors import CheckpointError
from ..causal import ModelConfig
from ..chatglm import ChatGlm
from ..layouts import Layout, identify, recognise
from .settled import folder_of, settle


class ChatGLMConfig(PreTrainedConfig):
    """A config.json of ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B."""

    model_type: ClassVar[str] = "chatglm"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    use_cache: bool = True

    # Without annotations these are defaults and no fields: a folder that lacks them is saved
    # without them, and ``AutoConfig.from_pretrained(folder, pre_seq_len=128)`` still sets them.
    num_layers = None
    pad_token_id = None
    bos_token_id = None
    eos_token_id = None
    pre_seq_len = None
    prefix_projection = False
    classifier_dropout = None
    quantization_bit = 0
    quantization_embeddings = False
    tokenizer_class = "ChatGLMTokenizer"
    family = None

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        if kwargs.get("num_layers") is None and kwargs.get("num_hidden_layers") is not None:
            kwargs["num_layers"] = kwargs["num_hidden_layers"]
        kwargs.pop("num_hidden_layers", None)
        if "padded_vocab_size" in kwargs:
            # Original classes know the size by both names, transformers by this one.
            kwargs["vocab_size"] = kwargs["padded_vocab_size"]
        self._published_name = str(kwargs.pop("_name_or_path", ""))
        super().__post_init__(**kwargs)
        if not hasattr(self, "tie_word_embeddings"):
            self.tie_word_embeddings = self.first_generation

    def __setattr__(self, key: str, value: object) -> None:
        super().__setattr__(key, value)
        if key == "vocab_size" and "padded_vocab_size" in self.__dict__:
            self.padded_vocab_size = value

    @property
    def original(self) -> dict[str, Any]:
        """The fields as config.json holds them."""
        named = {} if not self._published_name else {"_name_or_path": self._published_name}
        return {**self.__dict__, "model_type": self.model_type, **named}

    @property
    def layout(self) -> Layout:
        """How the checkpoint is written.

        :raises CheckpointError: if it is none that glmkit runs.
        """
        return recognise(self.original)

    @property
    def shape(self) -> ModelConfig:
        """The model's shape, as its plain modules take it.

        It depends on the family where ``rope_ratio`` does: what ``family`` says, else the hints of
        the folder that this was read from.
        """
        found = identify(self._folder, self.original, self.family)
        return self.layout.shape(self.original, found.family)

    @property
    def _folder(self) -> Path | None:
        return folder_of(self.name_or_path)

    def save_pretrained(
        self,
        save_directory: Any,  # noqa: ANN401
        push_to_hub: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Write config.json, and beside it the family where config.json alone leaves it open."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        found = identify(self._folder, self.original, self.family)
        if self.family or (found.certain and not identify(None, self.original).certain):
            settle(Path(save_directory), found.family, self._folder)

    @property
    def first_generation(self) -> bool:
        """Whether this is ChatGLM-6B, whose positions count along two axes."""
        try:
            return self.layout.model is ChatGlm
        except CheckpointError:  # no folder described yet: transformers builds empty ones
            return False

    @property
    def max_position_embeddings(self) -> int | None:
        """The context length in tokens."""
        length = self.__dict__.get("seq_length", self.__dict__.get("max_sequence_length"))
        return None if length is None else int(length)

    def to_dict(self) -> dict[str, Any]:
        """Return every field; the number of layers under both names, as GLM-4-9B has it."""
        fields: dict[str, Any] = super().to_dict()
        fields.pop("_published_name", None)
        if "num_layers" in fields:
            fields["num_hidden_layers"] = fields["num_layers"]
        return fields

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what is written to config.json, with the name that the model was published by.

        That name tells chatglm2-6b-32k from later models, where ``rope_ratio`` means another thing.
        """
        fields: dict[str, Any] = super().to_diff_dict()
        if self._published_name:
            fields["_name_or_path"] = self._published_name
        return fields
