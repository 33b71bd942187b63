"""The vocabularies of all ChatGLM generations behind transformers' tokenizer class.

The ids, and what decodes from them, are those of `models/vocabularies`, and so of the originals.
Three things are as everywhere in transformers, and not as in the originals:

* The mask of a batch has two dimensions, 1 for a real token, for ChatGLM-6B too. Its model builds
  the whole mask and both axes of positions from that and the ids, so that ``generate``, data
  collators and ``Trainer`` work as with any other model.
* Positions are given for all other generations, counted from 0 behind pads on the left.
* In chats, the name of a role that a user typed is text. (In plain text it is read as the original
  tokenizer reads it.)
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import BatchEncoding, PreTrainedTokenizer

from ...errors import CheckpointError, UsageError
from ..files import read_json_if_there
from ..formats import encode
from ..layouts import family_of
from ..tokenizers import Tokenizer
from ..vocabularies import IceText, Pieces, Ranks
from . import history as conversations
from .settled import folder_of, settle, settled_family


class ChatGLMTokenizer(PreTrainedTokenizer):
    """The vocabulary of ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B.

    :param vocab_file: a file of the folder that the vocabulary lies in.
    :param family: whose chat format it is, see `models/families.py`; None: as the folder says.
    :param encode_special_tokens: read the names of special tokens in plain text; None: as the
        original tokenizer does, which is no for ChatGLM3's first one and yes for all others.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "tokenizer.model",
        "ice_text_file": "ice_text.model",
        "tokenizer_file": "tokenizer.json",
        "model_config_file": "config.json",
    }
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask", "position_ids"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None = None,
        ice_text_file: str | None = None,
        tokenizer_file: str | None = None,
        model_config_file: str | None = None,
        family: str | None = None,
        encode_special_tokens: bool | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        files = (ice_text_file, vocab_file, tokenizer_file)
        self._file = next((Path(each) for each in files if each is not None), None)
        inner = Tokenizer.open(self._file.parent, family=family) if self._file else None
        if inner is None or self._file is None:
            wanted = ", ".join(list(self.vocab_files_names.values())[:3])
            raise CheckpointError(
                f"the folder holds no vocabulary that glmkit reads; expected one of {wanted}"
            )
        self.inner, self._settled = inner, family
        self.family = family or _family(inner, self._file.parent)
        listed = {str(each) for each in kwargs.get("added_tokens_decoder", {}).values()}
        if encode_special_tokens is None:
            encode_special_tokens = self.family != "chatglm3" or "<|user|>" in listed
        self.encode_special_tokens = encode_special_tokens
        self._ids: dict[str, int] = {}
        for name, number in (("bos", inner.bos_id), ("eos", inner.eos_id), ("pad", inner.pad_id)):
            if number is not None:
                kwargs[f"{name}_token"] = inner.token(number)
        super().__init__(family=self.family, **kwargs)
        self.model_input_names = self.model_input_names[: 2 if self.family == "chatglm" else 3]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Load a folder; ``family`` says whose it is, else its `glmkit.json`, else its hints."""
        folder = folder_of(pretrained_model_name_or_path, kwargs.get("subfolder"))
        said = kwargs.pop("family", None) or settled_family(folder)
        if said:
            kwargs["family"] = said
        found = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        found._settled = said
        return found

    @property
    def vocab_size(self) -> int:
        """How many ids there are, special ones included."""
        return self.inner.size

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token by its name; the first of those that share one."""
        if not self._ids:
            for number in range(self.inner.size - 1, -1, -1):
                self._ids[self.inner.token(number)] = number
        return self._ids

    def _update_total_vocab_size(self) -> None:
        self.total_vocab_size = self.inner.size

    def _add_tokens(self, new_tokens: Sequence[Any], special_tokens: bool = False) -> int:
        unknown = [str(each) for each in new_tokens if str(each) not in self.get_vocab()]
        if unknown:
            raise UsageError(
                f"{unknown[0]!r} is no token of this vocabulary, and none can be added: the "
                "published files fix it; use text that the model has seen"
            )
        return int(super()._add_tokens(list(new_tokens), special_tokens=special_tokens))

    def _encode_plus(
        self,
        text: Any,  # noqa: ANN401
        text_pair: Any = None,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> BatchEncoding:
        if kwargs.get("is_split_into_words"):
            return super()._encode_plus(text, text_pair, **kwargs)
        specials = self._reads_specials(kwargs.pop("split_special_tokens", None))
        text = self._numbers(text, specials=specials)
        return super()._encode_plus(text, self._numbers(text_pair, specials=specials), **kwargs)

    def _reads_specials(self, split: bool | None) -> bool:
        """Tell whether names of special tokens in plain text are read as such."""
        return not split and self.encode_special_tokens and not self.split_special_tokens

    def _numbers(self, value: Any, *, specials: bool) -> Any:  # noqa: ANN401
        """Put ids in the place of texts, in any nesting; transformers takes both."""
        if isinstance(value, str):
            return self.inner.encode(value, specials=specials) or ""
        if isinstance(value, (list, tuple)) and not (value and isinstance(value[0], int)):
            return type(value)(self._numbers(each, specials=specials) for each in value)
        return value

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # noqa: ANN401
        """Return what the vocabulary calls the parts of a text."""
        specials = self._reads_specials(kwargs.get("split_special_tokens"))
        return [self.inner.token(each) for each in self.inner.encode(text, specials=specials)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.get_vocab().get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.inner.token(index)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put around a prompt, and an answer where one is given, what the model expects there."""
        return self.inner.wrap(token_ids_0, token_ids_1)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        **kwargs: object,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.inner.decode(map(int, ids), skip_special=skip_special_tokens)

    def _pad(self, encoded_inputs: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        before = len(encoded_inputs[self.model_input_names[0]])
        padded: dict[str, Any] = super()._pad(encoded_inputs, *args, **kwargs)
        if "position_ids" in self.model_input_names:
            places = padded.get("position_ids", list(range(before)))
            pads = [0] * (len(padded["input_ids"]) - len(places))
            left = (kwargs.get("padding_side") or self.padding_side) == "left"
            padded["position_ids"] = pads + places if left else places + pads
        return padded

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copy the vocabulary's file, and write a family that was stated; return the files."""
        source = self._file
        if source is None:
            return ()
        target = Path(save_directory) / source.name
        if target.resolve() != source.resolve():
            shutil.copyfile(source, target)
        if not self._settled:
            return (str(target),)
        return (str(target), str(settle(Path(save_directory), self._settled, source.parent)))

    def get_command(self, token: str) -> int:
        """Return the id of a special token, as ChatGLM3's tokenizer does.

        :raises UsageError: if there is none of that name.
        """
        number = self.inner.special(token)
        if number is None:
            raise UsageError(f"{token!r} is no special token of this vocabulary")
        return number

    def build_prompt(self, query: str, history: Sequence[Sequence[str]] | None = None) -> str:
        """Return the text of ChatGLM-6B's or ChatGLM2's prompt.

        :param history: earlier questions with their answers.
        """
        return conversations.prompt(self.family, query, history or ())

    def build_chat_input(
        self, query: str, history: Sequence[Mapping[str, Any]] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """Return the prompt of ChatGLM3 or GLM-4 as tensors of one row."""
        return self._row(self._asked(query, history, role))

    def _asked(self, query: str, earlier: Sequence[Any] | None, role: str = "user") -> list[int]:
        return encode(conversations.asked(self.family, query, earlier or (), role), self.inner)

    def _row(self, ids: list[int]) -> BatchEncoding:
        """Return whole ids as tensors of one row."""
        return self.pad({"input_ids": [ids]}, return_tensors="pt")

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = True,
        padding: bool | str = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Write conversations as the model was trained on them; no template is rendered.

        :param conversation: messages with ``role`` and ``content``, or several such lists.
        :param add_generation_prompt: end where the answer begins.
        """
        if kwargs.get("chat_template") is not None:
            return super().apply_chat_template(
                conversation,
                tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=tokenize,
                return_tensors=return_tensors,
                return_dict=return_dict,
                padding=padding,
                **kwargs,
            )
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        rows = [
            conversations.written(self.family, each, tools, open_ended=add_generation_prompt)
            for each in ([conversation] if single else conversation)
        ]
        if not tokenize:
            texts = [conversations.text(each) for each in rows]
            return texts[0] if single else texts
        ids: Any = [encode(each, self.inner) for each in rows]
        if return_tensors is None and single:
            ids = ids[0]
        if not return_dict and return_tensors is None:
            return ids
        found = self.pad({"input_ids": ids}, padding=padding, return_tensors=return_tensors)
        return found if return_dict else found["input_ids"]


class ChatGLM4Tokenizer(ChatGLMTokenizer):
    """The same under the name that GLM-4-9B's folders give it."""


def _family(inner: Tokenizer, folder: Path) -> str:
    """Return whose vocabulary it is."""
    if isinstance(inner, IceText):
        return "chatglm"
    if isinstance(inner, Pieces):
        return "chatglm3" if "<|user|>" in inner.specials else "chatglm2"
    raw = read_json_if_there(folder / "config.json")
    if raw and not isinstance(inner, Ranks):
        return family_of(folder, raw)
    return "glm4"
