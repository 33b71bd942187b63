"""Every generation against what the original code gives on tiny checkpoints, in float32.

The reference lies beside the project; where it is absent these tests skip, and
`test_generations.py` still holds each generation to itself.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from glmkit.models.prefix import beside_prefix
from glmkit.runtime.cache import KVCache
from glmkit.runtime.decode import Row, columns
from glmkit.runtime.loading import load_local
from glmkit.runtime.past import Front, Span
from glmkit.runtime.weights import Weights

BASES = ("chatglm-6b-tiny", "chatglm2-6b-tiny", "chatglm3-6b-tiny", "glm-4-9b-tiny")
PREFIXED = (
    "chatglm-6b-tiny-ptuning",
    "chatglm-6b-tiny-ptuning-proj",
    "chatglm2-6b-tiny-ptuning",
    "chatglm2-6b-tiny-ptuning-proj",
    "chatglm3-6b-tiny-ptuning",
)
NEVER = 511  # the id that ends answers in the reference runs


@pytest.fixture(scope="module", params=BASES + PREFIXED)
def case_of(request, shared_reference, tmp_path_factory):
    """Return a loaded model, and case -> field -> tensor as the original code gave them."""
    name = request.param
    folder = shared_reference / "checkpoints" / name
    if name in PREFIXED:
        folder = joined(folder, shared_reference, tmp_path_factory.mktemp("joined"))
    model = load_local(folder, dtype="float32")
    model.settings = replace(model.settings, stop_ids=frozenset({NEVER}))
    found = {}
    with np.load(shared_reference / "expected" / f"{name}.npz") as arrays:
        for key in arrays.files:
            case, _, field = key.partition(".")
            found.setdefault(case, {})[field] = torch.from_numpy(arrays[key])
    return model, found


def joined(prefix, reference, folder):
    """Write base and prefix into one folder."""
    base = reference / "checkpoints" / prefix.name.partition("-ptuning")[0]
    tensors = {**dict(Weights(base)), **dict(Weights(prefix))}
    save_file(
        {key: each.contiguous() for key, each in tensors.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text((prefix / "config.json").read_text())
    return folder


def real(case):
    """Return which tokens of a case are no padding, (B, T)."""
    if "valid" in case:
        return case["valid"].bool()
    mask = case.get("attention_mask")
    whole = torch.ones_like(case["input_ids"], dtype=torch.bool)
    return whole if mask is None or mask.dim() == 4 else mask.bool()


def test_logits(case_of):
    model, cases = case_of
    scored = [case for case in cases.values() if "logits" in case]
    for case in scored:
        got = model.logits(case["input_ids"], case.get("attention_mask"), case.get("position_ids"))
        assert float((got - case["logits"])[real(case)].abs().max()) < 1e-4
    assert len(scored) >= 4


def test_logits_of_ids_alone(case_of):
    model, cases = case_of
    for case in cases.values():
        if "logits_model_built" in case:
            got = model.logits(case["input_ids"])
            assert float((got - case["logits_model_built"]).abs().max()) < 1e-4
    got = model.logits(cases["long302"]["input_ids"])[:, -8:]
    assert float((got - cases["long302"]["logits_last8"]).abs().max()) < 1e-4


def test_logits_of_positions_counted_with_the_pads(case_of):
    # What the original does when a padded batch comes without positions: with a prefix, whose
    # keys stand still, that is another result.
    model, cases = case_of
    for case in cases.values():
        if "logits_no_position_ids" in case:
            counted = torch.arange(case["input_ids"].shape[1]).expand_as(case["input_ids"])
            got = model.logits(case["input_ids"], case["attention_mask"], counted)
            difference = (got - case["logits_no_position_ids"])[real(case)]
            assert float(difference.abs().max()) < 1e-4


def test_losses(case_of):
    model, cases = case_of
    trained = [case for case in cases.values() if "loss" in case]
    for case in trained:
        got = model.logits(case["input_ids"], case.get("attention_mask"), case.get("position_ids"))
        loss = F.cross_entropy(got[:, :-1].flatten(0, 1), case["labels"][:, 1:].flatten())
        assert float((loss - case["loss"]).abs()) < 1e-5
    assert trained


def test_hidden_states(case_of):
    model, cases = case_of
    blocks = getattr(model.model.transformer, "encoder", model.model.transformer).layers
    seen = []
    hooks = [each.register_forward_hook(lambda *event: seen.append(event[2])) for each in blocks]
    first = not hasattr(model.model.transformer, "encoder")
    for case in cases.values():
        if "hidden_states" in case:
            seen.clear()
            model.logits(case["input_ids"], case["attention_mask"], case["position_ids"])
            layers = [*seen[:-1], model.model.norm(seen[-1]) if first else seen[-1]]
            for got, expected in zip(layers, case["hidden_states"][1:], strict=True):
                # Generation 1's stream is some hundred wide: its rounding is compared to that.
                assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
    for hook in hooks:
        hook.remove()
    assert seen


def test_greedy_ids(case_of):
    model, cases = case_of
    ran = 0
    for name, case in cases.items():
        if name.startswith("gen_") and len(case["input_ids"]) == 1:
            prompt = case["input_ids"][0].tolist()
            assert model.generate_ids(prompt, 32) == after(case, 0)
            ran += 1
    assert ran


def after(case, row):
    """Return the new tokens of a row up to the id that ends it."""
    new = case["generated"][row, case["input_ids"].shape[1] :].tolist()
    return new[: new.index(NEVER)] if NEVER in new else new


def test_greedy_ids_in_a_batch(case_of):
    model, cases = case_of
    case = cases["gen_batch_leftpad"]
    mask = case["attention_mask"]
    kept = mask.bool() if mask.dim() == 2 else ~mask[:, 0].diagonal(dim1=-2, dim2=-1)
    stops = frozenset({NEVER})
    rows = [
        Row(ids[keep].tolist(), 32, stops)
        for ids, keep in zip(case["input_ids"], kept, strict=True)
    ]
    for _ in columns(model.model, rows, slots=2):
        pass
    assert [row.new for row in rows] == [after(case, 0), after(case, 1)]


def test_steps_over_the_cache(case_of):
    model, cases = case_of
    case = cases["decode_steps"]
    prompt, forced = case["input_ids"], case["forced"][0].tolist()
    with torch.inference_mode():
        scores, cache = stepped(model.model, prompt, forced)
        got = torch.stack(scores)[None]
        assert float((got - case["step_logits"]).abs().max()) < 1e-4
        if "chunk" in case:
            got = chunked(model.model, cache, prompt.shape[1] + len(forced), case["chunk"])
            assert float((got - case["chunk_logits"]).abs().max()) < 1e-4
    whole = case["full_logits"][0, prompt.shape[1] : prompt.shape[1] + len(forced)]
    assert float((torch.stack(scores) - whole).abs().max()) < 1e-4


def stepped(model, prompt, forced):
    """Feed a prompt, then single tokens; return the scores of each of these."""
    prefix = model.prefix() if model.prefix is not None else None
    cache = KVCache(model.config, 1, likes=[model.like] * model.config.layers, prefix=prefix)
    cache.reserve(1, prompt.shape[1] + 16)
    positions, mask = model.start(prompt)
    if cache.ahead:
        mask = beside_prefix(mask, cache.ahead, prompt)
    span = Span(cache, cache.open(), 0, prompt.shape[1])
    model.hidden(prompt, positions, mask=mask, causal=mask is None, past=span)
    place = model.placer(prompt[0].tolist())
    scores = []
    for index, token in enumerate(forced, prompt.shape[1]):
        at = torch.tensor([place(index)])[..., None]
        hidden = model.hidden(torch.tensor([[token]]), at, past=Front(cache, [index]))
        scores.append(model.scores(hidden)[0, -1])
    return scores, cache


def chunked(model, cache, start, ids):
    """Feed several tokens at once behind what the cache holds; return their scores."""
    tokens = ids.shape[1]
    end = cache.ahead + start + tokens
    mask = torch.ones(tokens, end, dtype=torch.bool).tril(end - tokens)[None, None]
    positions = torch.arange(start, start + tokens)[None]
    return model.scores(model.hidden(ids, positions, mask=mask, past=Span(cache, 0, start, tokens)))


def test_prefix_values(case_of):
    model, cases = case_of
    if "prefix_kv" not in cases:
        assert model.model.prefix is None
        return
    kv = cases["prefix_kv"]["kv"][:, :, :, 0]  # (L, 2, P, heads, D)
    with torch.inference_mode():
        got = model.model.prefix().unflatten(2, (2, -1)).transpose(1, 2)
    assert float((got - kv).abs().max()) < 1e-5


def test_the_reference_has_no_case_that_is_not_tested(case_of, shared_reference):
    _, cases = case_of
    fields = {field for case in cases.values() for field in case}
    assert fields <= {
        *("input_ids", "attention_mask", "position_ids", "labels", "valid", "chunk", "forced"),
        *("logits", "logits_model_built", "logits_last8", "loss", "hidden_states", "kv"),
        *("step_logits", "full_logits", "chunk_logits", "generated", "loss_model_built"),
        # The same ids by other ways of the original code; they equal `generated`:
        *("generated_no_cache", "generated_full_recompute", "generated_model_built"),
        "logits_no_position_ids",
        # Greedy ids of a padded batch whose positions were counted with the pads; not offered:
        "generated_no_position_ids",
    }
    named = json.loads((shared_reference / "expected" / "chatglm-6b-tiny.json").read_text())
    assert "gen_infill" in named
