"""Layers on several devices, in the processor's memory and on the disk: the answers stay the same.

Two "devices" that are both ``cpu`` run the very code that two cards would, and their answers are
compared with the unsplit model's bit for bit. Where the question is what moves, the meta device,
which knows shapes only, stands in for a card.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_adapters import lora
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glmkit import GenerationOptions, UsageError
from glmkit.models.causal import CausalModel
from glmkit.models.chatglm import ChatGlm
from glmkit.models.glm import Glm
from glmkit.models.tiny import TINY, TINY_FIRST, tiny_checkpoint
from glmkit.runtime import loading
from glmkit.runtime.cache import KVCache
from glmkit.runtime.carrying import Carried, Staying, lent
from glmkit.runtime.engines.local import LocalModel
from glmkit.runtime.filling import build
from glmkit.runtime.linears import StoredEmbedding
from glmkit.runtime.past import Front, Span
from glmkit.runtime.placement import Home

SPLIT = (Home("cpu:0"), Home("cpu:1"))
KEPT = (Home("cpu"), Home("cpu", "cpu"))
DISK = (Home("cpu", "disk"), Home("cpu", "disk"))


pytestmark = pytest.mark.usefixtures("one_thread")


def opened(folder: Path, homes=(), **how) -> LocalModel:
    plan = loading._planned(
        folder,
        found := loading.read_model(folder, None),
        **{"device": "cpu", "dtype": None, "quantize": None} | how,
    )
    model = build(replace(plan, homes=homes))
    return LocalModel.open(model, folder, name="tiny", family=found.finding.family)


def prompt(layout: str) -> list[int]:
    ids = [5 + at * 7 % 200 for at in range(20)]
    return [*ids, 260, 262] if layout == "chatglm" else ids


def answers(model: LocalModel, layout: str) -> tuple[Tensor, list[int]]:
    ids = prompt(layout)
    return model.logits(torch.tensor([ids])), model.generate_ids(ids, 6)


def same(one, other) -> None:
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize(
    ("layout", "homes", "how"),
    [
        *[("hub", homes, {}) for homes in (SPLIT, KEPT, DISK)],
        ("chatglm", SPLIT, {}),
        ("chatglm", DISK, {}),
        ("chatglm3", KEPT, {}),
        ("hub", SPLIT, {"quantize": "int4"}),
        ("hub", KEPT, {"dtype": "bfloat16"}),
        ("chatglm", DISK, {"quantize": "int8"}),
    ],
    ids=str,
)
def test_a_spread_model_answers_bit_for_bit_as_the_whole_one(tmp_path, layout, homes, how):
    folder = tiny_checkpoint(tmp_path, layout=layout)
    whole = answers(opened(folder, **how), layout)
    spread = opened(folder, homes, **how)
    same(answers(spread, layout), whole)


@pytest.mark.parametrize("files", ["bin", "safetensors"])
def test_a_layer_on_disk_is_read_again_for_each_pass(tmp_path, files):
    folder = tiny_checkpoint(tmp_path, files=files, dtype=torch.float16)
    model = opened(folder, DISK, dtype="float16")
    turns = model.model.stack.turns
    linears = [each for each in model.model.stack.modules() if isinstance(each, nn.Linear)]
    assert linears and all(each.weight.is_meta for each in linears)
    model.generate_ids(prompt("hub"), 5)
    # One pass over the prompt, and one for each new token but the last.
    assert [each.turns for each in turns] == [5, 5]
    assert all(each.weight.is_meta for each in linears)


@pytest.mark.parametrize("layout", ["hub", "chatglm"])
@pytest.mark.parametrize("homes", [SPLIT, DISK], ids=["split", "disk"])
def test_batches_streams_and_turns_are_the_same_over_several_devices(tmp_path, layout, homes):
    folder = tiny_checkpoint(tmp_path, layout=layout)
    asked = [[{"role": "user", "content": "ab" * (3 * at + 1)}] for at in range(3)]
    options = GenerationOptions(max_tokens=4, temperature=0.0)
    texts = []
    for each in ((), homes):
        model = opened(folder, each)
        texts.append([each.text for each in model.batch(asked, options)])
        # What the batch left behind is taken over from the caches of each device.
        texts.append(["".join(c.text for c in model.stream(row, options)) for row in asked])
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert len(set(texts[0])) > 1


def test_weights_are_dropped_when_a_pass_fails(tmp_path):
    model = opened(tiny_checkpoint(tmp_path), DISK).model
    turn = model.stack.turns[0]
    with pytest.raises(ZeroDivisionError), turn.brought():
        held = turn.block.self_attention.dense.weight
        assert not held.is_meta
        raise ZeroDivisionError
    assert turn.block.self_attention.dense.weight.is_meta


def test_what_is_lent_is_a_copy(tmp_path):
    folder = tiny_checkpoint(tmp_path, layout="chatglm")
    linear = opened(folder).model.stack.layers[0].attention.dense
    copied = lent(linear, torch.device("cpu"))
    assert copied.weight.data_ptr() != linear.weight.data_ptr()
    assert copied.bias.data_ptr() != linear.bias.data_ptr()
    assert torch.equal(copied.weight, linear.weight)


@pytest.mark.parametrize("homes", [SPLIT, KEPT, DISK], ids=["split", "kept", "disk"])
def test_adapters_and_prefixes_go_with_their_layers(tmp_path, homes):
    folder = tiny_checkpoint(tmp_path / "model", layout="chatglm3", prefix=4)
    adapter = lora(opened(folder))
    found = []
    for each in ((), homes):
        model = opened(folder, each)
        plain = answers(model, "chatglm3")
        model.add_adapter(adapter)
        found.append((plain, answers(model, "chatglm3")))
        model.set_adapter(None)
        same(answers(model, "chatglm3"), plain)
    same(found[0][0], found[1][0])
    same(found[0][1], found[1][1])
    assert not torch.equal(found[0][0][0], found[0][1][0])


def test_carried_layers_refuse_merging(tmp_path):
    adapter = lora(opened(tiny_checkpoint(tmp_path / "model")))
    for homes, refused in ((SPLIT, False), (KEPT, True), (DISK, True)):
        model = opened(tiny_checkpoint(tmp_path / "model"), homes)
        model.add_adapter(adapter)
        if not refused:
            model.merge_adapter()
            continue
        with pytest.raises(UsageError, match="brought in for each pass"):
            model.merge_adapter()


def test_gradients_go_through_a_split_model(tmp_path):
    found = []
    for homes in ((), SPLIT):
        model = opened(tiny_checkpoint(tmp_path), homes).model.train().requires_grad_(True)
        model(torch.tensor([prompt("hub")])).logsumexp(-1).sum().backward()
        found.append([each.grad for each in model.parameters()])
    assert all(map(torch.equal, *found))


SHAPES = [replace(TINY, layers=4), replace(TINY_FIRST, layers=4)]
CARDS = ("cpu", "cpu", "meta", "meta")


class Borders(TorchDispatchMode):
    """Refuses to compute with tensors of two devices, as cards do; copies alone cross over."""

    def __init__(self) -> None:
        super().__init__()
        self.crossed = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        devices = {each.device.type for each in tensors}
        if op in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            self.crossed += str((kwargs or {}).get("device", "cpu")) not in devices
        elif len(devices) > 1:
            raise AssertionError(f"{op} over {devices}")
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", SHAPES, ids=["glm", "chatglm"])
@pytest.mark.parametrize("rows", [1, 2])
def test_nothing_meets_on_two_devices(config, rows):
    """The last layer, the norm and the head are on the last device, the table on the first."""
    model = scattered(config)
    cache = KVCache(config, rows, likes=model.likes)
    cache.reserve(rows, 32)
    assert tuple(each.device.type for each in cache.layers) == CARDS
    for _ in range(rows):
        cache.open()
    ids = torch.zeros(rows, 6, dtype=torch.long)
    mask = torch.ones(rows, 1, 6, 6, dtype=torch.bool)
    with Borders(), torch.no_grad():
        past = Span(cache, 0, 0, 6, rows=rows)
        hidden = model.hidden(ids, places(config, rows, 6), mask=mask, past=past)
        assert hidden.is_meta and model.scores(hidden).is_meta
        front = Front(cache, [6, 4][:rows])
        new = places(config, rows, 1)
        hidden = model.hidden(ids[:, :1], new, past=front)
        assert model.scores(hidden[:, -1]).is_meta


@pytest.mark.parametrize("config", SHAPES, ids=["glm", "chatglm"])
def test_activations_and_what_they_see_move_once_for_a_border(config):
    model = scattered(config)
    with Borders() as borders, torch.no_grad():
        model.hidden(torch.zeros(1, 6, dtype=torch.long), places(config, 1, 6), causal=True)
    turns = 1 if config is SHAPES[0] else 2  # cosines and sines
    assert borders.crossed == 1 + turns


def test_what_is_on_the_wrong_device_is_noticed():
    model = scattered(SHAPES[0])
    model.stack.turns = [Staying(torch.device("cpu"))] * 4
    with Borders(), pytest.raises(AssertionError, match="over"):
        model(torch.zeros(1, 6, dtype=torch.long))


def scattered(config) -> CausalModel:
    """Return a model whose second half is on the meta device, where there are only shapes."""
    with torch.device("meta"):
        model = (ChatGlm if config is SHAPES[1] else Glm)(config)
    model.stack.turns = [Staying(torch.device(each)) for each in CARDS]
    for block, each in zip(model.stack.layers, CARDS, strict=True):
        if each == "cpu":
            block.to_empty(device=each)
    table = torch.empty(config.vocab_size, config.hidden_size)
    model.set_submodule(model.EMBEDDING, StoredEmbedding(table, torch.float32))
    return model.eval().requires_grad_(False)


def places(config, rows: int, tokens: int) -> Tensor:
    shape = (rows, 2, tokens) if config is SHAPES[1] else (rows, tokens)
    return torch.zeros(shape, dtype=torch.long)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "homes",
    [
        (Home("cuda:0"), Home("cpu")),
        (Home("cpu"), Home("cuda:0")),
        (Home("cuda:0"), Home("cuda:0", "cpu")),
        (Home("cuda:0"), Home("cuda:0", "disk")),
    ],
)
@pytest.mark.parametrize("how", [{}, {"quantize": "int4"}], ids=str)
def test_a_card_and_the_processor_share_a_model(tmp_path, homes, how):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    folder = tiny_checkpoint(tmp_path, layout="chatglm3")
    whole, ids = answers(opened(folder, dtype="float32", **how), "chatglm3")
    spread = opened(folder, homes, dtype="float32", **how)
    got, new = answers(spread, "chatglm3")
    assert torch.allclose(got.cpu(), whole, atol=2e-3 if not how else 0.2)
    assert len(new) == len(ids)


def test_turns_say_whether_they_are_carried(tmp_path):
    turns = opened(tiny_checkpoint(tmp_path), KEPT).model.stack.turns
    assert [type(each) for each in turns] == [Staying, Carried]
    assert [each.carried for each in turns] == [False, True]
