"""The catalog: names mean one thing, and near misses are helped."""

from __future__ import annotations

import re

import pytest

from glmkit import catalog, store
from glmkit.catalog import CATALOG, HubSource, WheelSource
from glmkit.errors import UnknownNameError


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_no_name_means_two_things_of_one_kind(kind):
    names = [each.lower() for entry in CATALOG if entry.kind == kind for each in entry.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_every_entry_is_complete(entry):
    assert all(store.is_name(each) for each in entry.names)
    assert not re.search("[A-Z/]", entry.name)
    assert entry.sources and entry.summary.endswith(".") and entry.licence
    assert entry.context_length and entry.size and entry.languages
    assert all(re.fullmatch("[a-z]{2}", code) for code in entry.languages)
    for name in entry.names:
        assert catalog.find(name, entry.kind) is entry
        assert catalog.find(name.upper(), entry.kind) is entry


def test_wheels_are_pinned():
    wheels = [each for entry in CATALOG for each in entry.sources if isinstance(each, WheelSource)]
    assert len(wheels) == 2
    for wheel in wheels:
        assert re.fullmatch("[0-9a-f]{64}", wheel.sha256)
        stem = f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-"
        assert wheel.filename.startswith(stem) and wheel.filename.endswith(".whl")
        assert re.fullmatch(r"glmkit\.models\.\w+:\w+", wheel.convert)


def test_the_defaults():
    model, encoder = catalog.find("default", "model"), catalog.find("default", "encoder")
    assert (model.name, model.languages) == ("smollm2-135m-instruct", {"en"})
    assert encoder.name == "multilingual-e5-small" and {"zh", "en"} < encoder.languages
    assert catalog.find("default") is model


@pytest.mark.parametrize(
    "name",
    [
        *("chatglm-6b", "chatglm-6b-int4", "chatglm-6b-int8", "chatglm2-6b", "chatglm2-6b-32k"),
        *("chatglm2-6b-int4", "chatglm3-6b", "chatglm3-6b-32k", "chatglm3-6b-128k"),
        *("glm-4-9b", "glm-4-9b-chat", "glm-4-9b-chat-1m", "glm-4-9b-chat-hf"),
    ],
)
def test_every_generation_is_known_by_its_old_and_new_hub_id(name):
    entry = catalog.find(name)
    assert entry.hub == HubSource(hf=f"zai-org/{name}", modelscope=f"ZhipuAI/{name}")
    assert catalog.find(f"THUDM/{name}") is entry
    assert catalog.find(f"ZhipuAI/{name}") is entry


def test_a_near_miss_is_helped():
    with pytest.raises(UnknownNameError, match="did you mean") as error:
        catalog.find("chatglm3-6", "model")
    assert error.value.nearest[0] == "chatglm3-6b"
    assert error.value.exit_code == 2
    with pytest.raises(UnknownNameError, match="known: .*chatglm3-6b.*mine"):
        catalog.find("zzz", "model", also=["mine"])


def test_the_wrong_kind_is_said():
    with pytest.raises(UnknownNameError, match="it is the name of an encoder"):
        catalog.find("bge-m3", "model")
    with pytest.raises(UnknownNameError, match="it is the name of a chat model"):
        catalog.find("chatglm3-6b", "encoder")


def test_names_are_short_and_of_one_kind():
    assert "default" in catalog.names() and "bge-m3" not in catalog.names("model")
    assert not [each for each in catalog.names() if "/" in each]
