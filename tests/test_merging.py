"""Adapters on disk: merged checkpoints, saved adapters, fingerprints, and the commands."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_adapters import FUSED, lora, tensors_of, write, written

from glmkit import CheckpointError, UnknownNameError, UsageError
from glmkit.cli import main
from glmkit.console import drain
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.adapters import Adapter, LowRank, read_adapter
from glmkit.runtime.convert import convert
from glmkit.runtime.fingerprint import Fingerprint
from glmkit.runtime.loading import load_local
from glmkit.runtime.merging import merge
from glmkit.runtime.saving import check, save_adapter

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = (FUSED, "dense", "dense_h_to_4h", "dense_4h_to_h")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "base"
    return tiny_checkpoint(folder, layout="chatglm2", dtype=torch.float16)


@pytest.fixture(scope="module")
def adapter(base):
    return lora(load_local(base), kinds=EVERY)


def ids_for(model):
    own = [each for each in ("gmask", "bos") if hasattr(model.config, each)]
    return torch.tensor([[5, 60, 7, *(getattr(model.config, each) for each in own), 9]])


@pytest.mark.parametrize("layout", ["hub", "chatglm", "glm4-9b"])
@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_a_merged_checkpoint_is_base_and_adapters(tmp_path, layout, files):
    dtype = torch.bfloat16 if layout == "glm4-9b" else torch.float16
    base = tiny_checkpoint(tmp_path / "base", layout=layout, files=files, dtype=dtype)
    model = load_local(base)
    pair = [(lora(model, seed=1), 0.7), (lora(model, seed=2, kinds=EVERY), -0.3)]
    done = drain(merge(base, pair, tmp_path / "out"))
    for at, (each, _) in enumerate(pair):
        model._adapters.add(str(at), each)
    model.set_adapter({"0": 0.7, "1": -0.3})
    merged = load_local(done.path)
    ids = ids_for(model)
    effect = model.logits(ids) - model.logits(ids, adapter={})
    error = merged.logits(ids) - model.logits(ids)
    assert float(error.abs().max()) < 0.1 * float(effect.abs().max())
    assert done.effect > 0.1 and done.error < 0.1 * done.effect
    assert merged.tokenizer is not None
    before = {path.name for path in base.iterdir()} - {"pytorch_model.bin", "model.safetensors"}
    assert {path.name for path in done.path.iterdir()} == before | {"model.safetensors"}
    with safe_open(done.path / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}  # noqa: SIM118
    assert done.tensors == (12 if layout == "hub" else 8)


def test_the_sum_is_taken_in_full_precision(tmp_path, base, adapter):
    done = drain(merge(base, [(adapter, 1.0)], tmp_path / "out"))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, done.path))
    assert before.keys() == after.keys()
    changed = {f"{stem}.weight": part for stem, part in adapter.parts.items()}
    for key, tensor in after.items():
        expected = before[key]
        if key in changed:
            expected = (expected.float() + changed[key].delta()).half()
        assert torch.equal(tensor, expected), key


def scaled(adapter, factor):
    parts = {stem: LowRank(p.a, p.b, p.scale * factor) for stem, p in adapter.parts.items()}
    return Adapter("scaled", "lora", "made up", parts)


@pytest.mark.parametrize(
    "factor, says", [(0.0, "changed no weight"), (1e-9, "changed no weight"), (1e6, "overflows")]
)
def test_a_merge_that_did_nothing_or_too_much_fails(tmp_path, base, adapter, factor, says):
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=says):
        drain(merge(base, [(scaled(adapter, factor), 1.0)], out))
    assert not list(tmp_path.iterdir())


def test_a_result_that_is_not_base_and_adapter_fails(tmp_path, base, adapter, monkeypatch):
    """As after a wrong scale: the comparison must notice."""
    true = LowRank.delta
    monkeypatch.setattr(LowRank, "delta", lambda part: 2 * true(part))
    with pytest.raises(CheckpointError, match="is not base \\+ adapter"):
        drain(merge(base, [(adapter, 1.0)], tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_merged_is_refused(tmp_path, base, adapter):
    with pytest.raises(UsageError, match="weight that is not 0"):
        drain(merge(base, [(adapter, 0.0)], tmp_path / "out"))
    prefix = tiny_checkpoint(
        tmp_path / "p", layout="chatglm2", prefix=3, only_prefix=True, files="bin"
    )
    with pytest.raises(UsageError, match="prefix, which is no change of weights"):
        drain(merge(base, [(read_adapter(prefix), 1.0)], tmp_path / "out"))
    quantised = tmp_path / "int8"
    shutil.copytree(base, quantised)
    tensors = load_file(base / "model.safetensors")
    key = f"transformer.encoder.layers.0.self_attention.{FUSED}.weight"
    tensors[key] = tensors[key].to(torch.int8)
    tensors[f"{key}_scale"] = torch.ones(tensors[key].shape[0], dtype=torch.float16)
    save_file(tensors, quantised / "model.safetensors")
    with pytest.raises(CheckpointError, match="quantised.*unquantised checkpoint"):
        drain(merge(quantised, [(adapter, 1.0)], tmp_path / "out"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="not empty"):
        drain(merge(base, [(adapter, 1.0)], tmp_path / "full"))
    head = LowRank(torch.ones(1, 64), torch.ones(320, 1))
    tied = tiny_checkpoint(tmp_path / "tied", layout="chatglm")
    headed = Adapter("head", "lora", "", {"lm_head": head})
    with pytest.raises(CheckpointError, match="shares with its token table"):
        drain(merge(tied, [(headed, 1.0)], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_outlives_conversion_precision_and_other_files(tmp_path, base):
    known = Fingerprint.of(base)
    drain(convert(base, tmp_path / "hf", to="hf"))
    again = Fingerprint.of(tmp_path / "hf")
    assert known.differs(again) is None
    assert again.norms == known.norms and again.matrices == known.matrices
    binned = tiny_checkpoint(tmp_path / "bin", layout="chatglm2", dtype=torch.float16, files="bin")
    assert known.differs(Fingerprint.of(binned)) is None
    other = tiny_checkpoint(tmp_path / "other", layout="chatglm2", seed=1)
    assert known.differs(Fingerprint.of(other)) == "its norms and biases hold other values"
    first = tiny_checkpoint(tmp_path / "first", layout="chatglm")
    assert "architecture" in known.differs(Fingerprint.of(first))


def test_a_saved_adapter_knows_its_base(tmp_path, base, adapter):
    folder = save_adapter(adapter, tmp_path / "saved", base=Fingerprint.of(base))
    model = load_local(base)
    name = model.load_adapter(folder)
    assert name == "saved"
    again = model.adapters[name]
    assert again.parts.keys() == adapter.parts.keys()
    for stem, part in adapter.parts.items():
        assert torch.equal(again.parts[stem].a, part.a)
        assert torch.equal(again.parts[stem].b, part.b)
        assert again.parts[stem].scale == part.scale
    assert "this very model" in check(again, base, name="base")
    with pytest.raises(UsageError, match="not empty"):
        save_adapter(adapter, folder)


def test_what_is_saved_over_another_adapter_keeps_nothing_of_it(tmp_path, base, adapter):
    folder = written(tmp_path / "saved", adapter)
    save_adapter(adapter, folder, base=Fingerprint.of(base, "mine"), force=True)
    assert {each.name for each in folder.iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "glmkit-adapter.json")
    }
    save_adapter(scaled(adapter, 0.5), folder, force=True)
    again = read_adapter(folder)
    assert again.fingerprint is None
    assert {part.scale for part in again.parts.values()} == {1.0}
    save_adapter(again, folder, force=True)  # over the file that its tensors are mapped from
    for stem, part in read_adapter(folder).parts.items():
        assert torch.equal(part.a, adapter.parts[stem].a)


def test_a_model_saves_adapters_with_its_fingerprint(tmp_path, base, adapter):
    model = load_local(base)
    model.load_adapter(written(tmp_path / "mine", adapter), name="n")
    folder = model.save_adapter("n", tmp_path / "saved")
    known = read_adapter(folder).fingerprint
    assert known is not None and known == model.fingerprint()
    other = load_local(tiny_checkpoint(tmp_path / "other", layout="chatglm2", seed=1))
    other.load_adapter(folder, any_base=True)
    again = other.save_adapter("saved", tmp_path / "again")
    assert read_adapter(again).fingerprint == known  # still what it was trained on
    with pytest.raises(UsageError, match="not empty"):
        model.save_adapter("n", folder)
    with pytest.raises(UnknownNameError, match="'m'"):
        model.save_adapter("m", tmp_path / "m")
    model.folder = None
    with pytest.raises(UsageError, match="was not loaded from a folder"):
        model.save_adapter("n", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_adapter_of_another_base_is_refused_by_name(tmp_path, base, adapter):
    folder = save_adapter(adapter, tmp_path / "saved", base=Fingerprint.of(base, "mine"))
    drain(merge(base, [(adapter, 1.0)], tmp_path / "merged"))
    tiny_checkpoint(tmp_path / "other", layout="chatglm2", seed=1)
    for name in ("merged", "other"):
        model = load_local(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"trained on mine, and {name} is another"):
            model.load_adapter(folder)
        assert not model.adapters
        model.load_adapter(folder, any_base=True)
        assert model.active_adapters == {"saved": 1}
    with pytest.raises(CheckpointError, match="trained on mine"):
        drain(merge(tmp_path / "other", [(read_adapter(folder), 1.0)], tmp_path / "out"))
    damaged = json.loads((folder / "glmkit-adapter.json").read_text())
    damaged["base"]["sizes"] = 5
    (folder / "glmkit-adapter.json").write_text(json.dumps(damaged))
    with pytest.raises(CheckpointError, match=r"glmkit-adapter\.json is damaged"):
        read_adapter(folder)


def test_different_ranks_are_saved_as_patterns(tmp_path, base):
    model = load_local(base)
    one, two = lora(model, rank=2, scale=1.5), lora(model, rank=5, scale=3, kinds=["dense"])
    both = Adapter("both", "lora", "", {**one.parts, **two.parts})
    again = read_adapter(save_adapter(both, tmp_path / "saved"))
    assert {stem: (p.rank, p.scale) for stem, p in again.parts.items()} == {
        stem: (p.rank, p.scale) for stem, p in both.parts.items()
    }


# ------------------------------------------------------------------------------------ commands


def run(capsys, *args):
    code = main(["adapters", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_show_says_what_an_adapter_is(capsys, tmp_path, adapter):
    folder = written(tmp_path / "mine", adapter)
    code, out, _ = run(capsys, "show", folder)
    assert code == 0
    for said in (
        "PEFT folder (pickled",
        "rank         4",
        "alpha        8",
        "dense x2",
        "some/base",
    ):
        assert said in out
    raw = tmp_path / "raw-lora.pt"
    torch.save(tensors_of(adapter, ".default"), raw)
    code, out, _ = run(capsys, "show", raw, "--json")
    assert code == 0 and "pass --alpha" in json.loads(out)["alpha"]


def test_check_says_what_differs(capsys, tmp_path, base, adapter):
    folder = written(tmp_path / "mine", adapter)
    code, out, _ = run(capsys, "check", folder, "--model", base)
    assert code == 0 and "all 16 tensors, 8 matrices" in out
    other = tiny_checkpoint(tmp_path / "first", layout="chatglm")
    code, out, err = run(capsys, "check", folder, "--model", other)
    assert code == 1 and "another architecture" in err and not out
    prefix = tiny_checkpoint(
        tmp_path / "p", layout="chatglm2", prefix=3, only_prefix=True, files="bin"
    )
    code, out, _ = run(capsys, "check", prefix, "--model", base)
    assert code == 0 and "a prefix of 3 entries" in out


def test_merge_and_convert_from_the_command_line(capsys, tmp_path, base, adapter):
    raw = tmp_path / "raw-lora.pt"
    torch.save(tensors_of(adapter, ".default"), raw)
    out = tmp_path / "out"
    code, _, err = run(capsys, "merge", base, raw, "-o", out)
    assert code == 2 and "records no alpha" in err
    folder = written(tmp_path / "mine", adapter)
    args = ("--weight", 0.5, "--weight", 0.25, "--alpha", 8)
    code, said, _ = run(capsys, "merge", base, folder, raw, "-o", out, *args)
    assert code == 0 and "8 matrices changed" in said
    model = load_local(base)
    model.load_adapter(folder)
    model.set_adapter({"mine": 0.75})
    ids = ids_for(model)
    assert torch.allclose(load_local(out).logits(ids), model.logits(ids), atol=0.05)
    code, _, err = run(capsys, "merge", base, folder, "-o", tmp_path / "o", "--weight", 1, *args)
    assert code == 2 and "3 --weight for 1 adapters" in err
    code, said, _ = run(
        capsys, "convert", raw, "-o", tmp_path / "today", "--alpha", 8, "--model", base
    )
    assert code == 0 and "wrote" in said and "no base" not in said
    code, said, _ = run(capsys, "convert", raw, "-o", tmp_path / "bare", "--alpha", 8)
    assert code == 0 and "records no base: give --model to record one" in said
    model.load_adapter(tmp_path / "today")
    assert torch.equal(model.logits(ids, adapter="today"), model.logits(ids, adapter="mine"))


def test_chat_wears_an_adapter(capsys, tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    raw = tmp_path / "x-lora.pt"
    torch.save(tensors_of(lora(load_local(base), kinds=EVERY), ".default"), raw)
    asked = ["run", "chat", "--model", str(base), "--ask", "hi", "--temperature", "0"]
    asked += ["--max-tokens", "8"]
    worn = [*asked, "--adapter", str(raw)]
    said = []
    for each in (asked, [*worn, "--adapter-alpha", "8"], [*worn, "--adapter-alpha", "1e-6"]):
        assert main(each) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1] and said[0] == said[2]
    assert main(worn) == 2
    assert "records no alpha" in capsys.readouterr().err


def test_the_grouped_layout_is_converted_exactly(tmp_path, base):
    model = load_local(base)
    tensors, deltas = {}, {}
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        stem = f"transformer.encoder.layers.{layer}.self_attention.{FUSED}"
        a, b = (torch.randn(*s, generator=generator) for s in ((4, 64), (64, 2, 1)))
        # 126 rows do not part into three: only layouts of equal thirds were written so.
        tensors |= {f"base_model.model.{stem}.lora_A.weight": a}
        tensors |= {f"base_model.model.{stem}.lora_B.weight": b}
        deltas[stem] = (a, b[..., 0])
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": [FUSED]}
    folder = write(tmp_path / "old", tensors, {**config, "enable_lora": [True, True]})
    again = read_adapter(save_adapter(read_adapter(folder), tmp_path / "new"))
    for stem, (a, b) in deltas.items():
        expected = 3 * torch.cat([b[:32] @ a[:2], b[32:] @ a[2:]])
        assert torch.allclose(again.parts[stem].delta(), expected, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"\[64, 64\].*the model has \[128, 64\]"):
        model.load_adapter(folder)


def test_check_tells_what_is_known_of_the_base(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm3")
    other = tiny_checkpoint(tmp_path / "other", layout="chatglm3", seed=9)
    plain = written(tmp_path / "plain", lora(load_local(base)))
    config = json.loads((plain / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "THUDM/chatglm2-6b"
    (plain / "adapter_config.json").write_text(json.dumps(config))
    adapter = read_adapter(plain)
    assert "trained on THUDM/chatglm2-6b" in check(adapter, base, name="base")
    save_adapter(adapter, tmp_path / "known", base=Fingerprint.of(base, "base"))
    known = read_adapter(tmp_path / "known")
    assert "this very model" in check(known, base, name="base")
    with pytest.raises(CheckpointError, match="another"):
        check(known, other, name="other")
    assert "taken all the same" in check(known, other, name="other", any_base=True)
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights"):
        check(adapter, base, name="base")
