"""Weight files and indexes that are cut, lie, or hold code."""

import json
import os
import pickle
import struct

import pytest
import torch
from bad_parts import HEAD, NORM, refused, tensors
from safetensors.torch import save_file

from glmkit.cli import main
from glmkit.errors import CheckpointError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.describe import describe
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    return tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")


def shards(folder, first, second, index):
    """Write two shards and an index over them in place of the single file."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    save_file(first, folder / "a.safetensors")
    save_file(second, folder / "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def halves(folder):
    found = tensors(folder)
    names = sorted(found)
    parts = [{key: found[key] for key in names[at::2]} for at in range(2)]
    index = {key: file for part, file in zip(parts, "ab", strict=True) for key in part}
    return *parts, {key: f"{file}.safetensors" for key, file in index.items()}


# ----------------------------------------------------------------------------------- weight files


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, -1])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_cut_file_is_named(tmp_path, suffix, kept):
    folder = tiny_checkpoint(tmp_path, layout="chatglm3", files=suffix)
    file = next(folder.glob(f"*.{suffix}"))
    file.write_bytes(file.read_bytes()[:kept])
    size = f"{file.stat().st_size:,} bytes on disk"
    refused(folder, rf"{file} is (damaged or cut short \({size}\)|a pickle .* or is damaged)")


def test_a_text_in_place_of_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("a computer's name\n")
    refused(folder, r"pytorch_model\.bin is no weight file")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_in_place_of_weights_is_named(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, "git lfs pull")


def header(folder, change):
    """Rewrite the header of the weights, leaving the numbers as they are."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8 : 8 + size])
    said = change(table)
    text = said if isinstance(said, bytes) else json.dumps(table).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def overlapping(table):
    table[NORM]["data_offsets"] = [0, 256]


def beyond(table):
    table[NORM]["data_offsets"] = [1 << 40, (1 << 40) + 256]


def longer(table):
    table[NORM]["shape"] = [1 << 40]


def overflowing(table):
    table[NORM]["shape"] = [1 << 62, 1 << 62]


def negative(table):
    table[NORM]["data_offsets"] = [-256, 0]


def unknown(table):
    table[NORM]["dtype"] = "F4096"


@pytest.mark.parametrize("lie", [overlapping, beyond, longer, overflowing, negative, unknown])
def test_a_header_that_lies_is_refused(folder, lie):
    header(folder, lie)
    refused(folder, r"model\.safetensors is damaged")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_of_another_length_is_refused(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    refused(folder, r"model\.safetensors is damaged")


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int8]
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_numbers_of_another_kind_are_refused(folder, suffix, dtype):
    found = tensors(folder)
    found[NORM] = found[NORM].to(dtype)
    if suffix == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(found, folder / "pytorch_model.bin")
    else:
        save_file(found, folder / "model.safetensors")
    refused(folder, r"final_layernorm\.weight holds ")


def test_double_precision_loads(folder):
    ids = torch.tensor([[5, 60, 7]])
    before = load_local(folder).logits(ids)
    save_file({k: v.double() for k, v in tensors(folder).items()}, folder / "model.safetensors")
    assert torch.equal(load_local(folder).logits(ids), before)
    assert describe(folder).weights.numbers.keys() == {"float64"}


# ------------------------------------------------------------------------------------- .bin files


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_pickle_never_runs(folder, tmp_path, capfd):
    (folder / "model.safetensors").unlink()
    target = tmp_path / "hacked"
    file = folder / "pytorch_model.bin"
    for write in (
        lambda: torch.save({"a": Attack(str(target))}, file),
        lambda: file.write_bytes(pickle.dumps(Attack(str(target)), protocol=2)),
        lambda: file.write_bytes(pickle.dumps({"a": Attack(str(target))}, protocol=4)),
    ):
        write()
        refused(folder, "runs no code")
        for command in (["models", "show", str(folder)], ["run", "chat", "--model", str(folder)]):
            assert main(["--no-plugins", *command, *(["--ask", "hi"] * ("chat" in command))]) == 1
            said = capfd.readouterr().err
            assert "runs no code" in said and "Traceback" not in said
    assert not target.exists()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_are_not_there_are_refused(folder):
    found = tensors(folder)
    (folder / "model.safetensors").unlink()
    for name, tensor in (
        (HEAD, torch.zeros(1, 1).expand(320, 64)),
        (HEAD, torch.empty(320, 64, device="meta")),
        (HEAD, torch.zeros(320, 64).to_sparse()),
        (HEAD, torch.quantize_per_tensor(torch.zeros(320, 64), 1.0, 0, torch.qint8)),
        (HEAD, [0.0]),
        (7, torch.zeros(1)),
    ):
        torch.save({name: tensor}, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            load_local(folder)
    torch.save(list(found.values()), folder / "pytorch_model.bin")
    refused(folder, "something else than a table")


# ----------------------------------------------------------------------------------------- indexes


def test_indexes_that_lie_are_refused(folder):
    first, second, index = halves(folder)
    shards(folder, first, second, index)
    load_local(folder)
    (folder / "b.safetensors").rename(folder / "c.safetensors")
    refused(folder, r"lacks 1 of 2 weight files: b\.safetensors")
    (folder / "c.safetensors").rename(folder / "b.safetensors")
    shards(folder, first, second | {next(iter(first)): torch.ones(64)}, index)
    refused(folder, "a second time")
    shards(folder, first, second, index | {"transformer.extra": "a.safetensors"})
    refused(folder, "which its index promises")
    for name in ("../b.safetensors", "/etc/passwd", "b/../../x.safetensors", "a\\b.safetensors"):
        shards(folder, first, second, index | {NORM: name})
        refused(folder, "points out of the folder")
    shards(folder, first, second, index | {NORM: "config.json"})
    refused(folder, r"no \.safetensors file")
    for table in ({}, [], None, {"a": 1}, {"a": None}):
        shards(folder, first, second, table)
        refused(folder, "no weight_map")
