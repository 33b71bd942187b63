"""What is saved for the next one who loads a folder, and folders that must not load silently."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hf_rows import rows, scores
from tiny_vocabularies import write_pieces
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import glmkit
import glmkit.hf
from glmkit.errors import CheckpointError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.types import GenerationOptions, Message, Reply

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def nameless(tmp_path: Path) -> Path:
    """A folder that could be ChatGLM2's as well as ChatGLM3's."""
    folder = tiny_checkpoint(tmp_path / "model", layout="chatglm2", vocabulary=False)
    raw = json.loads((folder / "config.json").read_text())
    del raw["_name_or_path"]
    (folder / "config.json").write_text(json.dumps(raw | {"padded_vocab_size": 512}))
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    (folder / "glmkit.json").unlink(missing_ok=True)
    write_pieces(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    return folder


def family_in(folder: Path) -> str:
    return json.loads((folder / "glmkit.json").read_text())["family"]


def answer(folder: Path, **said: str) -> Reply:
    """Return what a model says, and how long the prompt was."""
    model = glmkit.load(str(folder), dtype="float32", **said)
    options = GenerationOptions(max_tokens=3, temperature=0)
    return Reply.join(model.stream([Message("user", "Hello")], options))


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
@pytest.mark.parametrize("parts", ["both", "model", "tokenizer"])
def test_a_stated_family_is_saved(nameless: Path, tmp_path: Path, family: str, parts: str):
    yes = {"family": family}
    said = [yes if parts in ("both", each) else {} for each in ("model", "tokenizer")]
    AutoModel.from_pretrained(nameless, **said[0]).save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(nameless, **said[1]).save_pretrained(tmp_path / "saved")
    assert family_in(tmp_path / "saved") == family
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").family == family
    assert answer(tmp_path / "saved") == answer(nameless, **yes)
    # Once more: who loads the copy and saves it says nothing of a family.
    AutoModel.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "words")
    assert family_in(tmp_path / "again") == family_in(tmp_path / "words") == family


def test_the_prompts_of_both_families_differ_in_length(nameless: Path):
    """Else the test above would not see which one was taken."""
    found = {answer(nameless, family=each).usage.prompt_tokens for each in ("chatglm2", "chatglm3")}
    assert len(found) == 2


def test_what_a_folder_says_beside_the_family_goes_with_it(nameless: Path, tmp_path: Path):
    about = {"family": "chatglm2", "system": "Be brief."}
    (nameless / "glmkit.json").write_text(json.dumps(about))
    AutoModel.from_pretrained(nameless).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(nameless).save_pretrained(tmp_path / "words")
    for name in ("model", "words"):
        assert json.loads((tmp_path / name / "glmkit.json").read_text()) == about
    stated = AutoTokenizer.from_pretrained(nameless, family="chatglm3")
    assert stated.family == "chatglm3"


def test_a_guess_is_not_written_as_knowledge(nameless: Path, tmp_path: Path):
    AutoModel.from_pretrained(nameless).save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(nameless).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/glmkit.json").exists()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "base", layout="chatglm2", vocabulary=False)


def begun(base: Path) -> torch.nn.Module:
    """Return a model with a prefix that is no longer as it was begun."""
    model = AutoModel.from_pretrained(base, pre_seq_len=3)
    with torch.no_grad():
        for each in model.transformer.prefix_encoder.parameters():
            each.normal_(generator=torch.Generator().manual_seed(0))
    return model


def test_a_prefix_alone_is_refused_and_makes_an_adapter(base: Path, tmp_path: Path):
    model, folder = begun(base), tmp_path / "prefix"
    model.config.save_pretrained(folder)
    prefix = {name: each for name, each in model.state_dict().items() if ".prefix_encoder." in name}
    torch.save(prefix, folder / "pytorch_model.bin")
    for auto in (AutoModel, AutoModelForSequenceClassification):
        with pytest.raises(CheckpointError, match="P-Tuning prefix, not a model.*AutoConfig"):
            auto.from_pretrained(folder)
    ids = rows(count=1)["input_ids"]
    worn = glmkit.load(str(base), dtype="float32", adapter=str(folder))
    torch.testing.assert_close(worn.logits(ids), scores(model, input_ids=ids), atol=1e-4, rtol=0)
    again = AutoModel.from_pretrained(base, config=AutoConfig.from_pretrained(folder))
    start = "transformer.prefix_encoder."
    again.transformer.prefix_encoder.load_state_dict(
        {name.removeprefix(start): each for name, each in prefix.items()}
    )
    assert torch.equal(scores(again, input_ids=ids), scores(model, input_ids=ids))


def rewritten(folder: Path, drop: str) -> None:
    """Write the weights once more as a .bin file, without some tensors."""
    state = AutoModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    kept = {name: each for name, each in state.items() if drop not in name}
    assert len(kept) < len(state)
    torch.save(kept, folder / "pytorch_model.bin")


@pytest.mark.parametrize("drop", ["layers.1.mlp", "output_layer", "word_embeddings"])
def test_missing_tensors_are_refused(base: Path, drop: str):
    rewritten(base, drop)
    with pytest.raises(CheckpointError, match=f"lacks . tensors .*{drop}"):
        AutoModel.from_pretrained(base)
    if drop != "output_layer":
        with pytest.raises(CheckpointError, match=drop):
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)


def test_a_promised_prefix_must_be_there(base: Path, tmp_path: Path):
    begun(base).save_pretrained(tmp_path / "whole")
    assert AutoModel.from_pretrained(tmp_path / "whole").plain.prefix is not None
    rewritten(tmp_path / "whole", "prefix_encoder")
    with pytest.raises(CheckpointError, match="promises a prefix"):
        AutoModel.from_pretrained(tmp_path / "whole")


def test_what_is_to_be_trained_may_be_new(base: Path):
    model, info = AutoModel.from_pretrained(base, pre_seq_len=3, output_loading_info=True)
    assert info["missing_keys"] == {"transformer.prefix_encoder.embedding.weight"}
    assert model.plain.prefix is not None
    rating = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pre_seq_len=2)
    assert rating.plain.prefix is not None


class Harm:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file ran')",))


def test_damaged_files_and_files_with_code_are_refused_in_one_line(base: Path):
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        AutoModel.from_pretrained(base)
    (base / "model.safetensors").write_bytes(whole)
    rewritten(base, "final_layernorm")
    file = base / "pytorch_model.bin"
    whole = file.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "damaged or cut short"),
        (b"", "damaged or cut short"),
        (pickle.dumps({"a": Harm()}), "runs no code"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            AutoModel.from_pretrained(base)
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)
    file.unlink()
    index = {"weight_map": {"transformer.x": "pytorch_model-00001-of-00001.bin"}}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lacks 1 of 1 weight files"):
        AutoModel.from_pretrained(base)
