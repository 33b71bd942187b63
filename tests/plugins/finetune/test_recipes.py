"""Every recipe on a tiny checkpoint of every layout: the loss falls, and what it leaves reloads."""

import json
import shlex
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glmkit.errors import CheckpointError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training import run
from glmkit.training.recording import Record
from glmkit_finetune import recipes

IDS = [[3 + (7 * at) % 240 for at in range(12)]]
IDS[0][3:5] = 260, 262  # [gMASK] <sop>, without which ChatGLM-6B takes no row
COMMON = {
    "max_steps": 6,
    "save_steps": 6,
    "report_to": (),
    "max_length": 64,
    "batch_size": 12,
    "warmup_ratio": 0.0,
}
RECIPES = {
    "lora": ("lora", {"rank": 4, "learning_rate": 1e-2, "neftune": 1.0, "loraplus": 2.0}),
    "some": (
        "lora",
        {"rank": 4, "learning_rate": 2e-2, "rslora": True, "targets": ("q", "down_proj")},
    ),
    "dora": ("lora", {"rank": 4, "learning_rate": 1e-2, "dora": True}),
    "qlora": ("qlora", {"rank": 4, "learning_rate": 1e-2}),
    "ptuning": ("ptuning", {"pre_seq_len": 8, "learning_rate": 0.3}),
    "projection": ("ptuning", {"pre_seq_len": 8, "projection": True, "learning_rate": 3e-2}),
    "full": ("full", {"learning_rate": 2e-3}),
    "freeze": ("freeze", {"layers": 1, "learning_rate": 5e-3, "extra_modules": ("norm",)}),
}
WHOLE = ("full", "freeze")


@dataclass
class Done:
    """What a run came to."""

    out: Path
    losses: list[float]
    logits: torch.Tensor
    """Of the trained model, as it is in memory."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [{"instruction": f"{at} + {at}?", "output": f"= {2 * at}."} for at in range(12)]
    file = tmp_path_factory.mktemp("data") / "sums.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def quick():
    """Draw no curves: that takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "draw", lambda self, title, unit: None)
        yield patch


@pytest.fixture(scope="module", params=["hub", "chatglm", "chatglm2", "chatglm3", "glm4-9b"])
def base(request, tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("base") / request.param
    return tiny_checkpoint(folder, layout=request.param, tied=request.param == "hub")


def config_of(name, base, data, out, **more):
    recipe, settings = RECIPES[name]
    kind = getattr(recipes, recipe)
    values = {**COMMON, **settings, "data": (str(data),), **more}
    return kind, kind.config_type(model=str(base), output=str(out), **values)


def trained(name, base, data, out, quick, **more):
    """Run a recipe, and ask the model that it trained."""
    kept = []

    def loaded(*args, **kwargs):
        kept.append(load_local(*args, **kwargs))
        return kept[-1]

    quick.setattr(run, "load_local", loaded)
    kind, config = config_of(name, base, data, out, **more)
    losses = [log.loss for log in kind.run(config) if log.loss is not None]
    with torch.no_grad():
        logits = kept[0].model.eval()(torch.tensor(IDS))
    return Done(out, losses, logits)


@pytest.fixture(scope="module")
def runs(base, data, quick, tmp_path_factory):
    """Run every recipe on one base."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained(name, base, data, folder / name, quick) for name in RECIPES}


def test_the_loss_falls(runs):
    for name, done in runs.items():
        assert len(done.losses) == COMMON["max_steps"]
        assert min(done.losses[-2:]) < 0.9 * done.losses[0], (name, done.losses)


RELOADED = """
import sys, torch
from pathlib import Path
from glmkit.runtime.loading import load_local

base, ids, off = Path(sys.argv[1]), torch.tensor(eval(sys.argv[2])), {}
for out in sys.argv[3:]:
    path, expected = Path(out), torch.load(out + ".pt", weights_only=True)
    if (path / "model.safetensors").is_file():
        model = load_local(path, dtype="float32")
    elif path.name == "qlora":
        model = load_local(base, quantize="int4", adapter=path)
    else:
        model = load_local(base, dtype="float32", adapter=path)
    print(path.name, float((model.logits(ids) - expected).abs().max() / expected.abs().max()))
"""


def test_a_fresh_process_answers_as_the_trained_model_did(base, runs, forks):
    places = []
    for done in runs.values():
        torch.save(done.logits, f"{done.out}.pt")
        places.append(done.out)
        newest = done.out / "checkpoint-6"
        torch.save(done.logits, f"{newest}.pt")
        places += [newest] if done.out.name != "qlora" else []
    said = forks.run(RELOADED, base, IDS, *places).split()
    off = list(map(float, said[1::2]))
    for name, each in zip(said[::2], off, strict=True):
        assert each < (0.05 if name == "qlora" else 1e-5), (name, each)


# peft reads a property that transformers is about to rename.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_plain_peft_over_transformers_reads_them(base, runs, registered):
    import peft
    import transformers

    for name in ("lora", "some", "dora"):
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        worn = peft.PeftModel.from_pretrained(plain, runs[name].out).eval()
        with torch.no_grad():
            logits = worn(input_ids=torch.tensor(IDS)).logits
        expected = runs[name].logits
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max(), name


def test_the_original_door_reads_prefixes(base, runs, registered):
    import transformers

    if base.name == "hub":
        pytest.skip("GlmForCausalLM knows no prefixes")
    for name in ("ptuning", "projection"):
        shape = transformers.AutoConfig.from_pretrained(runs[name].out)
        plain = transformers.AutoModel.from_pretrained(base, config=shape, dtype=torch.float32)
        saved = torch.load(runs[name].out / "pytorch_model.bin", weights_only=True)
        start = "transformer.prefix_encoder."
        bare = {key.removeprefix(start): value for key, value in saved.items()}
        plain.transformer.prefix_encoder.load_state_dict(bare)
        with torch.no_grad():
            logits = plain.eval()(input_ids=torch.tensor(IDS)).logits
        expected = runs[name].logits
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max(), name


def test_a_checkpoint_has_the_layout_and_precision_of_its_base(base, runs):
    kept = load_file(base / "model.safetensors")
    for name in WHOLE:
        found = load_file(runs[name].out / "model.safetensors")
        assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
            k: (v.shape, v.dtype) for k, v in kept.items()
        }
        same = [key for key in kept if torch.equal(kept[key], found[key])]
        frozen = [key for key in kept if ".0." in key or "embed" in key or "output" in key]
        assert set(same) == set(frozen if name == "freeze" else [])


def test_half_precision_is_kept_and_checkpoints_go_on_exactly(tmp_path, data, quick, one_thread):
    base = tiny_checkpoint(tmp_path / "half", dtype=torch.float16)
    settings = {"scheduler": "constant", "save_steps": 3, "save_total_limit": 0}
    whole = trained("full", base, data, tmp_path / "a", quick, **settings)
    tensors = load_file(whole.out / "model.safetensors")
    assert {each.dtype for each in tensors.values()} == {torch.float16}
    assert not list(whole.out.glob("*.pt"))
    shutil.rmtree(whole.out / "checkpoint-6")
    rest = trained("full", base, data, whole.out, quick, **settings, resume=True)
    assert rest.losses == whole.losses[3:]
    assert torch.equal(rest.logits, whole.logits)


def test_an_adapter_is_gone_on_with_by_its_weights_alone(base, runs, data, quick, tmp_path):
    for name in ("lora", "projection"):
        again = trained(
            name, base, data, tmp_path / name, quick, init_adapter=str(runs[name].out), max_steps=1
        )
        before = runs[name].losses
        assert again.losses[0] < (before[0] + before[-1]) / 2
    kind, config = config_of(
        "lora", base, data, tmp_path / "x", rank=5, init_adapter=str(runs["lora"].out)
    )
    with pytest.raises(CheckpointError, match="give --rank 4 --alpha 16 --targets "):
        deque(kind.run(config))
    kind, config = config_of(
        "ptuning", base, data, tmp_path / "y", init_adapter=str(runs["projection"].out)
    )
    with pytest.raises(CheckpointError, match="give --pre-seq-len 8 --projection"):
        deque(kind.run(config))


def test_adapters_of_another_base_are_refused(runs, base, data, tmp_path):
    if base.name != "chatglm3":
        pytest.skip("once is enough")
    other = tiny_checkpoint(tmp_path / "other", layout="chatglm3", seed=9)
    for name in ("lora", "ptuning"):
        kind, config = config_of(
            name, other, data, tmp_path / name, init_adapter=str(runs[name].out)
        )
        with pytest.raises(CheckpointError, match="was trained on chatglm3, and other is another"):
            deque(kind.run(config))
        with pytest.raises(CheckpointError, match="was trained on chatglm3, and other is another"):
            load_local(other, adapter=runs[name].out)


def test_the_card_says_what_was_trained_and_how_to_use_it(runs, base):
    card = (runs["lora"].out / "README.md").read_text("utf-8")
    assert "library_name: peft" in card and "| rank | 4 |" in card and "| samples | 12 |" in card
    lines = card.splitlines()
    model, out = (shlex.quote(str(each)) for each in (base, runs["lora"].out))
    assert f"glmkit run chat --model {model} --adapter {out}" in lines
    assert any(each.startswith(f"glmkit adapters merge {model} {out} -o") for each in lines)
    full = (runs["full"].out / "README.md").read_text("utf-8").splitlines()
    assert f"glmkit run chat --model {shlex.quote(str(runs['full'].out))}" in full
    assert "adapters merge" not in (runs["ptuning"].out / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("lora", {"targets": ("wrong",)}, "'wrong' is no linear layer of this model; all, or"),
        ("lora", {"rank": 0}, "rank must be 1 or more, got 0"),
        ("lora", {"dropout": 1.0}, "dropout must be from 0 to below 1, got 1.0"),
        ("lora", {"init": "pissa"}, "init must be one of default, gaussian, orthogonal"),
        ("full", {"dtype": "float16"}, "float16 cannot be trained themselves"),
        ("freeze", {"layers": 9}, "layers must be 2 at most for this model, got 9"),
        (
            "freeze",
            {"modules": ("wrong",)},
            "'wrong' is no part of a layer; all, or some of: .*mlp",
        ),
        ("freeze", {"extra_modules": ("wrong",)}, "'wrong' is none of embedding, head, norm"),
        ("qlora", {"dora": True}, "DoRA needs plain weights"),
        ("qlora", {"quantize": "int2"}, "quantize must be one of auto, int4, int8"),
    ],
)
def test_settings_out_of_range(tmp_path, data, one_thread, name, settings, says):
    base = tiny_checkpoint(tmp_path / "base")
    with pytest.raises(UsageError, match=says):
        kind, config = config_of(name, base, data, tmp_path / "out", **settings)
        deque(kind.run(config))
    assert not (tmp_path / "out" / "adapter_config.json").exists()
