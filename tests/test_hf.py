"""Tiny checkpoints of every generation through transformers, peft and accelerate.

Shapes: B rows, T tokens, V vocabulary.
"""

import copy
import json
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from accelerate import infer_auto_device_map
from hf_rows import gradients, rows, scores
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import glmkit
import glmkit.hf
from glmkit.errors import MissingExtraError, UsageError
from glmkit.models.tiny import ORIGINAL, tiny_checkpoint

pytestmark = pytest.mark.usefixtures("registered")


# ChatGLM3's tensors and fields are ChatGLM2's.
@pytest.fixture(scope="module", params=[each for each in ORIGINAL if each != "chatglm3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base", layout=request.param)


@pytest.fixture
def model(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_registering_twice_changes_nothing(folder: Path):
    glmkit.hf.register()
    glmkit.hf.register()
    assert type(AutoModel.from_pretrained(folder)) is type(
        AutoModelForCausalLM.from_pretrained(folder)
    )


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'glmkit\[hf\]'"):
        glmkit.hf.register()


def test_the_family_settles_what_rope_ratio_means(tmp_path: Path):
    tiny_checkpoint(tmp_path, layout="chatglm2")
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["_name_or_path"]
    (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_ratio": 16}))
    ids = rows()["input_ids"]
    for family in ("chatglm2", "chatglm3"):
        model = AutoModel.from_pretrained(tmp_path, family=family)
        local = glmkit.load(str(tmp_path), dtype="float32", family=family).logits(ids)
        torch.testing.assert_close(scores(model, input_ids=ids), local, atol=1e-4, rtol=0)
        model.save_pretrained(tmp_path / family)
        again = AutoModel.from_pretrained(tmp_path / family)
        assert torch.equal(scores(model, input_ids=ids), scores(again, input_ids=ids))


def test_code_in_a_folder_is_neither_needed_nor_run(folder: Path, tmp_path: Path):
    raw = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}
    names |= {auto: "modeling_chatglm.ChatGLMForConditionalGeneration" for auto in ("AutoModel",)}
    raw["auto_map"] = names
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    for there in (False, True):
        for trust in (None, False, True):
            loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=trust)
            assert type(loaded).__module__.startswith("glmkit.")
            assert loaded.config.auto_map == names
        for name in () if there else ("configuration_chatglm", "modeling_chatglm"):
            (tmp_path / f"{name}.py").write_text("raise RuntimeError('code of the folder ran')")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_in_the_original_layout_and_the_same(
    folder: Path, tmp_path: Path, dtype: torch.dtype
):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.save_pretrained(tmp_path)
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), found
    assert again.dtype == dtype
    inputs = {"input_ids": rows()["input_ids"]}
    assert torch.equal(scores(model, **inputs), scores(again, **inputs))
    with (
        safe_open(tmp_path / "model.safetensors", "pt") as ours,
        safe_open(folder / "model.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
    before = json.loads((folder / "config.json").read_text())
    after = json.loads((tmp_path / "config.json").read_text())
    kept = {
        name: after.get(name) for name in before if name not in ("torch_dtype", "architectures")
    }
    assert kept == {name: before[name] for name in kept}
    assert after["dtype"] == str(dtype).removeprefix("torch.")
    local = glmkit.load(str(tmp_path), dtype="float32")
    wide = scores(again.float(), **inputs)
    torch.testing.assert_close(local.logits(inputs["input_ids"]), wide, atol=1e-4, rtol=0)


def test_shards_of_both_kinds_load(folder: Path, tmp_path: Path, model):
    model.save_pretrained(tmp_path / "cut", max_shard_size="100KB")
    assert (tmp_path / "cut/model.safetensors.index.json").is_file()
    layout = {"chatglm-6b": "chatglm", "chatglm2-6b": "chatglm2", "chatglm3-6b": "chatglm3"}
    kind = layout.get(model.config._published_name.split("/")[-1], "glm4-9b")
    tiny_checkpoint(tmp_path / "bin", layout=kind, files="bin")
    ids = rows()["input_ids"]
    for name in ("cut", "bin"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(scores(model, input_ids=ids), scores(again, input_ids=ids))


def test_a_row_padded_on_the_left_answers_as_it_does_alone(model):
    ids = rows(count=1)["input_ids"][:, :8]
    pads = torch.zeros(1, 3, dtype=torch.long)
    batch = torch.cat((torch.cat((pads, ids), 1), torch.cat((pads + 7, ids), 1)))
    mask = torch.ones_like(batch)
    mask[0, :3] = 0
    how = {"max_new_tokens": 6, "do_sample": False}
    alone = model.generate(ids, **how)[0, -6:]
    together = model.generate(batch, attention_mask=mask, **how)
    assert torch.equal(together[0, -6:], alone)
    whole = model.generate(batch, attention_mask=mask, use_cache=False, **how)
    assert torch.equal(whole, together)


def test_sampling_beams_and_stop_ids_work(model):
    ids = rows(count=1)["input_ids"][:, :8]
    torch.manual_seed(0)
    drawn = model.generate(ids, max_new_tokens=5, do_sample=True, num_return_sequences=3, top_p=0.9)
    assert drawn.shape == (3, 13)
    assert len({tuple(each) for each in drawn.tolist()}) > 1
    greedy = model.generate(ids, max_new_tokens=5, do_sample=False)
    likely = model.generate(ids, max_new_tokens=5, do_sample=False, num_beams=4)

    def total(answer: torch.Tensor) -> float:
        logs = scores(model, input_ids=answer).log_softmax(-1)[0, 7:-1]
        return float(logs.gather(-1, answer[0, 8:, None]).sum())

    assert total(likely) >= total(greedy) - 1e-4
    stop = int(greedy[0, 10])
    ended = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=stop)
    assert torch.equal(ended, greedy[:, : ended.shape[1]])
    assert int(ended[0, -1]) == stop
    assert ended.shape[1] <= 11


def test_whole_masks_say_what_two_dimensions_say(model):
    batch = rows()["input_ids"]
    batch[0, :2] = 0
    mask = torch.ones_like(batch)
    mask[0, :2] = 0
    start = model.plain.start(batch, mask)
    first = start.positions.dim() == 3
    whole = ~start.mask if first else start.mask
    added = torch.zeros(start.mask.shape).masked_fill(~start.mask, torch.finfo(torch.float32).min)
    expected = scores(model, input_ids=batch, attention_mask=mask)
    for four in (whole, added):
        found = scores(model, input_ids=batch, attention_mask=four, position_ids=start.positions)
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=0)


def test_what_does_not_fit_is_said(model):
    ids = rows()["input_ids"]
    with pytest.raises(UsageError, match=r"attention_mask is \[2, 3\]"):
        model(ids, attention_mask=torch.ones(2, 3))
    with pytest.raises(UsageError, match="input_ids"):
        model(attention_mask=torch.ones(2, 3))
    with pytest.raises(UsageError, match="cache_implementation"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")


def test_gradients_are_those_of_small_steps(model):
    """The plain modules write in place where that saves memory; gradients must not notice."""
    found = gradients(model)
    assert len(found) > 10
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        direction = found[name] / found[name].norm() + 0.5 * noise / noise.norm()
        direction *= 0.02 / float((found[name] * direction).sum())
        losses = []
        for sign in (1, -2):
            weight.data += sign * direction
            with torch.no_grad():
                losses.append(float(model(**rows()).loss))
        weight.data += direction
        assert (losses[0] - losses[1]) / 2 == pytest.approx(0.02, rel=0.05), name


def test_gradients_in_half_precision_point_the_same_way(folder: Path):
    wide = gradients(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    half = gradients(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))
    for name, each in wide.items():
        close = torch.cosine_similarity(each.flatten(), half[name].float().flatten(), dim=0)
        assert close > 0.97, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_gradients_are_the_same(model, reentrant: bool):
    calls: list[int] = []
    block = next(each for each in model.modules() if type(each).__name__ == "Block")
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    before = gradients(model)
    assert len(calls) == 1
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    after = gradients(model)
    assert len(calls) == 3
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.zero_grad()
    model(**rows(), use_cache=True).loss.backward()
    assert all(torch.equal(before[name], model.get_parameter(name).grad) for name in before)


def test_lora_is_trained_saved_and_loaded(folder: Path, tmp_path: Path, model):
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["query_key_value"], r=4)
    tuned = peft.get_peft_model(model, config)
    batch = rows()
    data = [{name: each[0] for name, each in batch.items()}] * 4
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        activation_checkpointing=True,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=tuned, args=arguments, train_dataset=data)
    trainer.train()
    losses = [float(each["loss"]) for each in trainer.state.log_history if "loss" in each]
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
    tuned.save_pretrained(tmp_path / "lora")
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = batch["input_ids"]
    untuned = scores(base, input_ids=ids)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
    assert torch.equal(scores(again, input_ids=ids), scores(tuned, input_ids=ids))
    assert (scores(again, input_ids=ids) - untuned).abs().max() > 0.01
    answer = again.generate(input_ids=ids[:1, :8], max_new_tokens=3, do_sample=False)
    assert int(answer[0, 8]) == int(scores(again, input_ids=ids[:1, :8])[0, -1].argmax())


def test_all_of_a_model_can_be_trained_and_copied(model):
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    gradients(model)
    optimizer.step()
    ids = rows()["input_ids"]
    assert not torch.equal(scores(model, input_ids=ids), scores(twin, input_ids=ids))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(scores(model, input_ids=ids), scores(twin, input_ids=ids))


@pytest.mark.parametrize("where", ["cpu", "cpu and disk", "disk"])
def test_a_device_map_is_honoured(folder: Path, tmp_path: Path, model, where: str):
    largest = sum(each.numel() * 4 for each in model.get_input_embeddings().parameters())
    room = {"cpu": 10**9, "cpu and disk": 2 * largest + 200_000, "disk": 0}[where]
    places = infer_auto_device_map(
        model,
        max_memory={"cpu": room, "disk": 10**9},
        no_split_module_classes=list(model._no_split_modules),
    )
    assert set(places.values()) == set(where.split(" and "))
    blocks = {name for name, each in model.named_modules() if type(each).__name__ == "Block"}
    inside = [name for name in places if any(name.startswith(block + ".") for block in blocks)]
    assert not inside
    spread = AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path
    )
    ids = rows()["input_ids"]
    assert torch.equal(scores(spread, input_ids=ids), scores(model, input_ids=ids))
    how = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(spread.generate(ids[:, :8], **how), model.generate(ids[:, :8], **how))


def test_the_vocabulary_can_grow(tmp_path: Path, model):
    ids = rows()["input_ids"]
    before = scores(model, input_ids=ids)
    model.resize_token_embeddings(352, mean_resizing=False)
    assert model.config.vocab_size == 352
    assert torch.equal(scores(model, input_ids=ids)[..., :320], before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(scores(again, input_ids=ids), scores(model, input_ids=ids))


def test_a_classifier_reads_the_last_real_token(folder: Path):
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    batch = rows()["input_ids"]
    out = model(batch, labels=torch.tensor([0, 2]))
    expected = torch.nn.functional.cross_entropy(out.logits.detach(), torch.tensor([0, 2]))
    assert out.logits.shape == (2, 3)
    assert float(out.loss.detach()) == pytest.approx(float(expected))
    out.loss.backward()
    assert model.classifier_head.weight.grad is not None
    for side in (0, -1):
        pads = torch.zeros(2, 4, dtype=torch.long)
        parts = [(pads, batch), (torch.zeros_like(pads), torch.ones_like(batch))]
        ids, mask = (torch.cat(each if side == 0 else each[::-1], dim=1) for each in parts)
        found = scores(model, input_ids=ids, attention_mask=mask)
        torch.testing.assert_close(found, scores(model, input_ids=batch), atol=1e-4, rtol=0)


def test_a_rewarding_head_learns(folder: Path):
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    batch, wanted = rows()["input_ids"], torch.tensor([1.0, -1.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        out = model(batch, labels=wanted)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("layout", ["chatglm", "chatglm2", "chatglm3"])
def test_a_prefix_runs_learns_alone_and_stays_exact(tmp_path: Path, layout: str, projection: bool):
    tiny_checkpoint(tmp_path, layout=layout, prefix=4, projection=projection, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    learning = {name for name, each in model.named_parameters() if each.requires_grad}
    assert learning
    assert all(name.startswith("transformer.prefix_encoder.") for name in learning)
    assert {model.get_parameter(name).dtype for name in learning} == {torch.float32}
    assert set(gradients(model)) == learning
    ids = rows(count=1)["input_ids"][:, :8]
    local = glmkit.load(str(tmp_path), dtype="float32")
    answer = model.float().eval().generate(ids, max_new_tokens=6, do_sample=False)
    assert answer[0, 8:].tolist() == local.generate_ids(ids[0].tolist(), 6)
    whole = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(whole, answer)


def test_a_prefix_can_be_begun_on_a_base(folder: Path):
    config = AutoConfig.from_pretrained(folder, pre_seq_len=3, prefix_projection=True)
    model = AutoModel.from_pretrained(folder, config=config)
    assert set(gradients(model)) == {
        name for name, _ in model.named_parameters() if "prefix_encoder" in name
    }
