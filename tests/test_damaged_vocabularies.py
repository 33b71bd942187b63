"""Vocabularies that are cut, mixed up or full of noise."""

from __future__ import annotations

import pytest
import tiny_vocabularies as tiny
from hypothesis import given, settings, strategies as st
from tiny_vocabularies import KINDS

from glmkit.errors import CheckpointError
from glmkit.models.tokenizers import Tokenizer


def change(folder, name, edit):
    file = folder / name
    file.write_bytes(edit(file.read_bytes()))


FAULTS = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "noise": lambda data: b"\x00\xff\x13" * 50,
    "pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "page": lambda data: b"<!DOCTYPE html><title>503</title>",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_vocabularies_give_one_clear_error(tmp_path, kind, fault):
    folder = KINDS[kind](tmp_path / "model")
    name = "ice_text.model" if kind == "chatglm" else "tokenizer.model"
    change(folder, name, FAULTS[fault])
    with pytest.raises(CheckpointError, match=name) as caught:
        Tokenizer.open(folder, family=kind)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder for each kind, and the contents of its files."""
    folders = {kind: KINDS[kind](tmp_path_factory.mktemp(f"{kind}-files")) for kind in KINDS}
    contents = {
        kind: {each.name: each.read_bytes() for each in folder.iterdir()}
        for kind, folder in folders.items()
    }
    # A function: hypothesis writes out what it is given, and the contents are long.
    return lambda kind: (folders[kind], contents[kind])


@pytest.mark.parametrize("kind", ["chatglm", "chatglm3"])
def test_damaged_pieces_are_found_at_once(files, kind):
    folder, contents = files(kind)
    name = "ice_text.model" if kind == "chatglm" else "tokenizer.model"
    # A field of an unknown number and nothing else: a model without a piece.
    (folder / name).write_bytes(b"\xa2\x06\x01a")
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.open(folder, family=kind)
    (folder / name).write_bytes(contents[name].replace("你".encode(), b"\xff\xff\xff", 1))
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        Tokenizer.open(folder, family=kind)


DAMAGE = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=6), st.booleans())


@pytest.mark.parametrize("kind", ["chatglm", "chatglm3", "glm4"])
@settings(deadline=None, max_examples=60)
@given(damages=st.tuples(DAMAGE, DAMAGE))
def test_no_damage_gives_more_than_one_clear_error(files, kind, damages):
    folder, contents = files(kind)
    for (name, content), damage in zip(sorted(contents.items()), damages, strict=True):
        share, removed, added, harmless = damage
        start = int(share * len(content))
        changed = content[:start] + added + content[start + removed :]
        (folder / name).write_bytes(content if harmless else changed)
    try:
        tokenizer = Tokenizer.open(folder, family=kind)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1
    else:
        tokenizer.decode(tokenizer.encode("Hello 你好<|user|>\n", specials=True))


def test_ranks_that_end_at_a_line_are_still_found_short(tmp_path):
    folder = tiny.write_ranks(tmp_path / "model")
    change(folder, "tokenizer.model", lambda data: b"".join(data.splitlines(True)[:-2]))
    with pytest.raises(CheckpointError, match="cut short"):
        Tokenizer.open(folder)


def test_ranks_without_settings_number_the_specials_themselves(tmp_path):
    folder = tiny.write_ranks(tmp_path / "model")
    listed = Tokenizer.open(folder)
    (folder / "tokenizer_config.json").unlink()
    bare = Tokenizer.open(folder)
    assert bare.special("<|user|>") == listed.special("<|user|>")
