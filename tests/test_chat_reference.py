"""Whole chats with the published vocabularies: held to the original chat() and stream_chat()."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from glmkit.chat import Chat
from glmkit.models.formats.replies import turns_of
from glmkit.runtime.loading import load_local
from glmkit.types import GenerationOptions, Message, Reply

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = GenerationOptions(max_tokens=24, temperature=0)
CASES = {
    "chatglm": ("chatglm-6b", "chatglm-6b-realvocab-tiny", "chatglm-6b-realvocab-tiny"),
    "chatglm2": (
        "chatglm2-6b",
        "chatglm3-6b-realvocab-tiny",
        "chatglm2-6b-chat-on-chatglm3-realvocab",
    ),
    "chatglm3": ("chatglm3-6b", "chatglm3-6b-realvocab-tiny", "chatglm3-6b-realvocab-tiny"),
    "glm4": ("glm-4-9b", "glm-4-9b-realvocab-tiny", "glm-4-9b-realvocab-tiny"),
}


RECORDED = ("chatglm", "chatglm3", "glm4")
"""Of ChatGLM2 there are no batches, scores and histories, but a chat with a kept cache."""


@pytest.fixture(scope="module", params=CASES)
def reference(request, shared_reference, tmp_path_factory):
    """Return a model with its published vocabulary, and what the original code made of it."""
    vocabulary, checkpoint, name = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    for source in ("tokenizers", vocabulary), ("checkpoints", checkpoint):
        for file in shared_reference.joinpath(*source).iterdir():
            (folder / file.name).symlink_to(file)
    model = load_local(folder, device="cpu", dtype="float32", family=request.param)
    results = shared_reference / "expected" / name
    expected = json.loads(results.with_suffix(".json").read_text("utf-8"))
    arrays = results.with_suffix(".npz")
    return model, expected, np.load(arrays) if arrays.is_file() else {}


def conversation(case):
    turns = []
    for item in case["history_in"]:
        if isinstance(item, dict):
            if item.get("metadata"):
                return None
            turns.append(Message(item["role"], item["content"], tools=tuple(item.get("tools", ()))))
        else:
            turns += [Message("user", item[0]), Message("assistant", item[1])]
    return [*turns, Message(case["role"] or "user" if "role" in case else "user", case["query"])]


def written(model, case):
    """Return what the model wrote, as the original code decodes it, its stop token cut off."""
    ids = [each for each in case["new_ids"] if each not in model.settings.stop_ids]
    return ids, model.tokenizer.decode(ids, skip_special=False)


def test_greedy_chats_are_the_original_ones(reference):
    model, expected, _ = reference
    for name, case in expected["chat"].items():
        ids, text = written(model, case)
        assert (name, model.generate_ids(case["input_ids"], 24)) == (name, ids)
        turns = conversation(case)
        if turns is None or any(each.tools for each in turns) and model.family == "glm4":
            continue  # the prompts differ: see the tests of the formats
        chunks = list(model.stream(turns, GREEDY))
        reply = Reply.join(chunks)
        assert reply.usage.prompt_tokens == len(case["input_ids"])
        assert reply.usage.completion_tokens == len(ids)
        stopped = len(ids) < len(case["new_ids"])
        assert reply.finish_reason == ("stop" if stopped else "length")
        if name == "en":
            assert next(model.batch([turns], GREEDY)) == reply
        if isinstance(case["response"], dict):
            # Nothing was offered to call: where the original makes a call up, we show text.
            assert turns_of(text)[0].metadata.strip() == case["response"]["name"]
            assert reply.text == text.strip() and not reply.tool_calls
        elif not stopped and model.family in ("chatglm3", "glm4"):
            # The original chat() of these generations always cuts the last token off.
            assert reply.text.startswith(case["response"]) and reply.text == text.strip()
        else:
            assert (name, reply.text) == (name, case["response"])


def test_streams_grow_as_the_original_ones(reference):
    model, expected, _ = reference
    for name, case in expected["stream_chat"].items():
        chat = expected["chat"][name]
        turns = conversation(chat)
        if turns is None or any(each.tools for each in turns):
            continue
        shown, steps = "", []
        for chunk in model.stream(turns, GREEDY):
            shown += chunk.text
            steps.append(shown)
        assert all("\ufffd" not in each[-1:] for each in steps)
        for step in case["responses"]:
            if isinstance(step, str) and isinstance(chat["response"], str):
                assert shown.startswith(step)
        assert len(steps) >= len(case["responses"]) // 2


@pytest.mark.parametrize("reference", RECORDED, indirect=True)
def test_two_turns_keep_the_history(reference):
    model, expected, _ = reference
    case = expected["two_turns"]
    chat = Chat(model, options=GREEDY)
    first = chat.reply("你好")
    second = chat.reply("再说一遍")
    assert first.text == case["first"]
    assert second.usage.prompt_tokens == len(case["calls"][1]["input_ids"][0])
    assert second.text.startswith(case["second"])
    assert [each.content for each in chat.history[:3:2]] == ["你好", "再说一遍"]


@pytest.mark.parametrize("reference", ["chatglm2"], indirect=True)
def test_a_kept_cache_means_one_row(reference):
    model, expected, _ = reference
    case = expected["stream_chat_past_key_values"]["turns"]
    prompt = expected["chat"]["zh"]["input_ids"]
    first = model.generate_ids(prompt, 16)
    # The original code loses the last token of an answer that was cut off.
    more = model.tokenizer.encode("\n\n[Round 2]\n\n问：再说一遍\n\n答：")[1:]
    second = model.generate_ids([*prompt, *first[:-1], *more], 16)
    texts = [model.tokenizer.decode(each) for each in (first, second)]
    assert texts == [each["response"] for each in case]
    assert len(prompt) + 15 + len(more) + 15 == case[1]["cache_length"]


@pytest.mark.parametrize("reference", RECORDED, indirect=True)
def test_batches_are_the_original_ones(reference):
    model, expected, _ = reference
    case, tokenizer = expected["batch_generate"], model.tokenizer
    rows = [tokenizer.wrap(each) for each in tokenizer.encode_batch(case["texts"])]
    padded = tokenizer.pad(rows)
    for row, ids, output in zip(rows, padded.input_ids.tolist(), case["output_ids"], strict=True):
        assert output[: len(ids)] == ids
        new = model.generate_ids(row, 24)
        rest = output[len(ids) :]
        assert rest[: len(new)] == new
        assert set(rest[len(new) :]) <= model.settings.stop_ids | {tokenizer.pad_id}
    whole = [tokenizer.decode(each, skip_special=False) for each in case["output_ids"]]
    skipped = [tokenizer.decode(each) for each in case["output_ids"]]
    assert case["decoded"] in (whole, skipped)


@pytest.mark.parametrize("reference", RECORDED, indirect=True)
def test_scores_are_the_original_ones(reference):
    model, _, arrays = reference
    for name in ("zh", "en"):
        scores = model.logits(torch.from_numpy(arrays[f"{name}.input_ids"]))[0]
        indices = torch.from_numpy(arrays[f"{name}.top_indices"]).long()
        for found, field in (
            (scores.gather(-1, indices), "top_values"),
            (scores.logsumexp(-1), "logsumexp"),
            (scores[-1], "last_logits"),
        ):
            wanted = torch.from_numpy(arrays[f"{name}.{field}"])
            assert (found - wanted).abs().max() <= 1e-4


def test_stops_and_sampling_are_the_published_ones(reference):
    model, _, _ = reference
    stops = {
        "chatglm": {130_005},
        "chatglm2": {2},
        "chatglm3": {2, 64_795, 64_797},
        "glm4": {151_329, 151_336, 151_338},
    }
    assert model.settings.stop_ids == stops[model.family]
    sampling = (0.95, 0.7) if model.family == "chatglm" else (0.8, 0.8)
    assert (model.settings.temperature, model.settings.top_p) == sampling
