"""Foretold memory against what generated models really allocate, tensor by tensor.

A dispatch mode sees every tensor that an operator returns and, through weak references, when its
storage goes: the sum of what is alive is what a card would hold, the rounding of its allocator
left out. Tolerances: weights, keys and values, gradients and optimizer states are exact;
activations within 10 %. Where all weights learn, the highest is foretold up to a third too high on
models of four layers: gradients of one block and of the token table come behind it.
"""

import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glmkit import UsageError
from glmkit.models.chatglm import ChatGlm, ChatGlmConfig
from glmkit.models.glm import Glm, GlmConfig
from glmkit.models.prefix import Prefixed, beside_prefix
from glmkit.models.published import SHAPES, published, with_prefix
from glmkit.runtime import demand as foretold
from glmkit.runtime.cache import KVCache
from glmkit.runtime.demand import PER_PASS, SIZES, Job, demand
from glmkit.runtime.footprint import anatomy
from glmkit.runtime.past import Span
from glmkit.runtime.planning import of_shape

NEAR = 0.10
BEHIND = 0.35
GLM = GlmConfig(
    vocab_size=640,
    hidden_size=128,
    ffn_size=352,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=32,
    context_length=512,
    rotary_dim=16,
    qkv_bias=True,
)
WIDE = replace(GLM, hidden_size=192, heads=6, ffn_size=400, layers=3, vocab_size=1000)
CHATGLM = ChatGlmConfig(
    vocab_size=640,
    hidden_size=128,
    ffn_size=512,
    layers=4,
    heads=4,
    context_length=512,
    bos=639,
    mask=638,
    gmask=637,
)
CONFIGS = pytest.mark.parametrize("config", [GLM, WIDE, CHATGLM], ids=["glm", "wide", "chatglm"])


pytestmark = pytest.mark.usefixtures("one_thread")


class Meter(TorchDispatchMode):
    """Counts the bytes of storages that are alive, those of ``known`` tensors left out."""

    def __init__(self, known=()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {each.untyped_storage()._cdata: 0 for each in known}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._take(each.untyped_storage())
        return out

    def _take(self, storage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key) -> None:
        self.live -= self._sizes.pop(key)


class Lora(nn.Module):
    """A LoRA as peft computes it: the halves in single precision."""

    def __init__(self, base, rank) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        out = self.base(x)
        return out + (self.b(self.a(x.to(self.a.weight.dtype))) * 2.0).to(out.dtype)


def built(config, job: Job):
    dtype = getattr(torch, job.dtype)
    if job.train == "ptuning":
        config = with_prefix(config, job.prefix)
    model = (ChatGlm if isinstance(config, ChatGlmConfig) else Glm)(config)
    for each in model.parameters():
        nn.init.normal_(each, std=0.02)
    model.to(dtype).train().requires_grad_(job.train == "full")
    if config.tied_head:
        model.set_submodule(model.HEAD, tied(model))
    if job.train == "lora":
        for stem, module in list(model.named_modules()):
            if stem.endswith("query_key_value"):
                model.set_submodule(stem, Lora(module, job.rank))
    if model.prefix is not None:
        model.prefix.float().requires_grad_(True)
    model.stack.gradient_checkpointing = job.checkpointing
    return model


def tied(model) -> nn.Module:
    head = nn.Linear(1, 1, bias=False)
    head.weight = model.get_submodule(model.EMBEDDING).weight
    return head


def rows(config, job: Job) -> Tensor:
    ids = torch.randint(0, 600, (job.batch, job.length))
    if isinstance(config, ChatGlmConfig):
        ids[:, -2:] = torch.tensor([config.gmask, config.bos])
    return ids


def step(model, job: Job) -> dict[str, int]:
    """Train once; return the bytes that stay, that are at the highest, and of gradients."""
    ids = rows(model.config, job)
    real = torch.ones_like(ids)
    real[0, 0] = 0  # a pad, so that there is a mask
    with Meter(model.parameters()) as meter:
        positions, mask = model.start(ids, real)
        before = meter.live
        hidden = hidden_of(model, ids, positions, mask)
        stays = meter.live - before
        logits = model.get_submodule(model.HEAD)(model.norm(hidden))
        F.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()
        peak = meter.peak - before
    grads = sum(each.grad.nbytes for each in model.parameters() if each.grad is not None)
    return {"stays": stays, "peak": peak, "gradients": grads}


def hidden_of(model, ids, positions, mask):
    if model.prefix is None:
        return model.hidden(ids, positions, mask=mask)
    mask = beside_prefix(mask, model.prefix.config.length, ids)
    return model.hidden(ids, positions, mask=mask, past=Prefixed(model.prefix()))


def whole(config, job: Job):
    needed = demand(of_shape(config), job)
    return needed, needed.on(config.layers, first=True, last=True)


def near(foretold: int, measured: int, above: float = NEAR) -> None:
    assert measured * (1 - NEAR) <= foretold <= measured * (1 + above), (
        f"foretold {foretold:,}, measured {measured:,}: {foretold / measured:.2f}"
    )


@CONFIGS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_cache_are_exact(config, dtype):
    job = Job(batch=3, length=256, dtype=dtype)
    model = built(config, job)
    _, parts = whole(config, job)
    assert parts.weights == sum(each.nbytes for each in model.parameters())
    cache = KVCache(config, job.batch, likes=[model.like] * config.layers)
    cache.reserve(job.batch, job.length)
    assert parts.cache == sum(each.nbytes for each in cache.layers)


@pytest.mark.parametrize(
    ("config", "train", "dtype", "checkpointing"),
    [
        (GLM, "lora", "bfloat16", True),
        (GLM, "lora", "float32", False),
        (WIDE, "lora", "float32", True),
        (WIDE, "full", "bfloat16", True),
        (CHATGLM, "lora", "bfloat16", False),
        (CHATGLM, "lora", "float32", True),
        (CHATGLM, "full", "float32", False),
    ],
    ids=lambda value: {GLM: "glm", WIDE: "wide", CHATGLM: "chatglm"}.get(value, str(value)),
)
def test_a_training_step_takes_what_was_foretold(config, train, dtype, checkpointing):
    job = Job(batch=2, length=128, dtype=dtype, train=train, checkpointing=checkpointing)
    model = built(config, job)
    needed, parts = whole(config, job)
    measured = step(model, job)
    last = job.tokens * config.hidden_size * SIZES[dtype]  # what the head is given
    near(needed.layer.activations * config.layers + last, measured["stays"])
    near(parts.activations + parts.gradients, measured["peak"], BEHIND if train == "full" else NEAR)
    assert parts.gradients == measured["gradients"]


@pytest.mark.parametrize("config", [GLM, CHATGLM], ids=["glm", "chatglm"])
def test_p_tuning_takes_what_was_foretold(config):
    job = Job(batch=2, length=128, dtype="bfloat16", train="ptuning", prefix=32)
    model = built(config, job)
    _, parts = whole(config, job)
    measured = step(model, job)
    near(parts.activations + parts.gradients, measured["peak"])
    assert parts.gradients == measured["gradients"]


@pytest.mark.parametrize(
    ("train", "dtype"), [("lora", "bfloat16"), ("full", "bfloat16"), ("ptuning", "float32")]
)
def test_adamw_keeps_what_was_foretold(train, dtype):
    job = Job(batch=1, length=32, dtype=dtype, train=train, prefix=8)
    model = built(GLM, job)
    step(model, job)
    learning = [each for each in model.parameters() if each.requires_grad]
    adamw = torch.optim.AdamW(learning)
    adamw.step()
    states = [each for state in adamw.state.values() for each in state.values()]
    held = sum(each.nbytes for each in states if each.dim())  # the step's number is 4 bytes
    assert whole(GLM, job)[1].optimizer == held


@CONFIGS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pass_over_prompts_takes_no_more_than_was_foretold(config, dtype):
    job = Job(batch=2, length=256, dtype=dtype)
    model = built(config, job).eval()
    ids = rows(config, job)
    with Meter(model.parameters()) as meter, torch.no_grad():
        positions, mask = model.start(ids, torch.ones_like(ids))
        before = meter.live
        hidden = model.hidden(ids, positions, mask=mask, causal=mask is None)
        model.scores(hidden[:, -1])
    foretold = whole(config, job)[1].activations
    assert 0.6 * foretold <= meter.peak - before <= foretold


def test_a_piece_of_a_long_prompt_takes_no_more_than_was_foretold(monkeypatch):
    piece, job = 64, Job(length=4096, dtype="bfloat16")
    monkeypatch.setattr(foretold, "PER_PASS", piece)
    config = replace(GLM, ffn_size=64, context_length=job.length)
    model = built(config, job).eval()
    cache = KVCache(config, 1, likes=[model.like] * config.layers)
    cache.reserve(1, job.length)
    slot, start = cache.open(), job.length - piece
    positions = torch.arange(start, job.length)[None]
    with Meter([*model.parameters(), *cache.layers]) as meter, torch.no_grad():
        span = Span(cache, slot, start, piece)
        model.hidden(torch.zeros(1, piece, dtype=torch.long), positions, past=span)
    assert 0.6 * whole(config, job)[0].inside <= meter.peak <= whole(config, job)[0].inside


def test_long_prompts_come_in_in_pieces_but_for_chatglm_6b():
    long, short = Job(length=131_072), Job(length=PER_PASS)
    glm, first = (of_shape(SHAPES[name]) for name in ("glm-4-9b-chat", "chatglm-6b"))
    masks = (1 + 2) * PER_PASS * long.length
    assert masks < demand(glm, long).inside < demand(glm, short).inside + masks
    assert demand(glm, Job(batch=64, length=PER_PASS)).inside == demand(glm, short).inside
    assert demand(first, long).inside > 64 * demand(first, short).inside


def test_chatglm_6b_in_half_precision_takes_about_13_gb():
    needed = demand(of_shape(SHAPES["chatglm-6b"]), Job(length=1024))
    total = needed.on(28, first=True, last=True).total
    assert 12.5e9 < total < 13.7e9


PUBLISHED = {
    "chatglm-6b": 6.17e9,
    "chatglm2-6b": 6.24e9,
    "chatglm3-6b-128k": 6.24e9,
    "glm-4-9b-chat": 9.40e9,
    "glm-4-9b-chat-1m": 9.48e9,
    "glm-4-9b-0414": 9.40e9,
    "glm-edge-1.5b-chat": 1.59e9,
    "glm-edge-4b-chat": 4.33e9,
    "default": 0.1345e9,
}


@pytest.mark.parametrize(("name", "numbers"), PUBLISHED.items())
def test_published_shapes_have_the_published_sizes(name, numbers):
    _, shape = published(name)
    whole_of = demand(of_shape(shape), Job()).on(shape.layers, first=True, last=True)
    assert whole_of.weights == pytest.approx(2 * numbers, rel=0.004)


def test_rounded_weights_are_smaller_and_expanded_one_at_a_time():
    parts = anatomy(meta(CHATGLM))
    sizes = [demand(parts, Job(quantize=how)) for how in (None, "int8", "int4")]
    weights = [each.layer.weights for each in sizes]
    assert weights[0] > 1.9 * weights[1] > 2.8 * weights[2]
    assert sizes[2].inside - sizes[0].inside == 2 * 128 * 512


def meta(config):
    with torch.device("meta"):
        return (ChatGlm if isinstance(config, ChatGlmConfig) else Glm)(config)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batch": 0}, "batch must be a whole number from 1"),
        ({"dtype": "int3"}, "dtype must be one of float32, bfloat16, float16"),
        ({"train": "magic"}, "train must be one of lora, full, ptuning"),
        ({"train": "full", "quantize": "int4"}, "train='lora'"),
    ],
)
def test_a_job_that_cannot_be_is_refused(wrong, says):
    with pytest.raises(UsageError, match=says):
        Job(**wrong)


def test_lora_on_a_linear_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="there are query_key_value, dense"):
        demand(of_shape(GLM), Job(train="lora", targets=("q_proj",)))
    every = demand(of_shape(GLM), Job(train="lora", targets=("all",)))
    one = demand(of_shape(GLM), Job(train="lora"))
    assert every.layer.optimizer > 2 * one.layer.optimizer
