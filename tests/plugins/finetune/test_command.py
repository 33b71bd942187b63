"""`glmkit finetune`: flags of every name that people know, files, and what goes wrong."""

import json
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from glmkit import RecipeSpec, StepLog, UsageError, hookimpl
from glmkit.cli import cli
from glmkit.models.tiny import tiny_checkpoint
from glmkit.testing import make_app
from glmkit_finetune.aliases import ALIASES
from glmkit_finetune.flags import config_of
from glmkit_finetune.recipes import FreezeConfig, FullConfig, LoraConfig, PtuningConfig, QloraConfig
from glmkit_finetune.settings import settings_of
from glmkit_finetune.showing import as_line, figures, lasting, others

SEEN = []


class Seen:
    """A recipe that trains nothing and remembers what it was told."""

    def __init__(self, config_type):
        self.config_type = config_type

    def run(self, config):
        SEEN.append(config)
        yield StepLog(0, 2, note="found it")
        yield StepLog(1, 2, loss=2.5, learning_rate=1e-3, tokens_per_s=10.0, seconds_left=3700.0)
        yield StepLog(2, 2, loss=1.5, metrics={"eval_loss": 1.25})


@dataclass(frozen=True)
class Odd:
    """Settings that no flag can say."""

    what: dict = None


lora, ptuning, odd = Seen(LoraConfig), Seen(PtuningConfig), Seen(Odd)


class Plugin:
    @hookimpl
    def register_recipes(self, register):
        register(RecipeSpec("lora", "Small matrices.", f"{__name__}:lora"))
        register(RecipeSpec("ptuning", "A prefix.", f"{__name__}:ptuning"))
        register(RecipeSpec("odd", "Strange.", f"{__name__}:odd"))
        register(RecipeSpec("none", "No recipe.", f"{__name__}:SEEN"))


@pytest.fixture
def finetune(tmp_path, monkeypatch):
    """Return a function that runs the command with these recipes."""
    import glmkit_finetune
    from glmkit.plugins import Plugins

    monkeypatch.setattr(glmkit_finetune, "_RECIPES", {})
    app = make_app(tmp_path / "home", finetune=glmkit_finetune, third=Plugin())
    monkeypatch.chdir(tmp_path)
    SEEN.clear()
    assert isinstance(app.plugins, Plugins)

    def run(*arguments):
        return CliRunner().invoke(cli, ["finetune", *map(str, arguments)], obj=app)

    return run


@pytest.fixture
def base(tmp_path):
    return tiny_checkpoint(tmp_path / "base", vocabulary=False)


FLAGS = [
    (["--learning-rate", "3e-4"], {"learning_rate": 3e-4}),
    (["--lora_rank", "4", "--lora-alpha", "8"], {"rank": 4, "alpha": 8.0}),
    (["--lora_target", "q,v"], {"targets": ("q", "v")}),
    (["--cutoff_len", "99", "--num_train_epochs", "2"], {"max_length": 99, "epochs": 2.0}),
    (["--bf16"], {"dtype": "bfloat16"}),
    (["--fp16", "True", "--bf16", "False"], {"dtype": "float16"}),
    (["--packing", "--no-group_by_length"], {"packing": True, "group_by_length": False}),
    (["--gradient_checkpointing", "true"], {"gradient_checkpointing": True}),
    (["--use_dora", "--lr_scheduler_type", "linear"], {"dora": True, "scheduler": "linear"}),
    (["--max_source_length", "64", "--max_target_length", "36"], {"max_length": 100}),
    (["--max_target_length", "36"], {"max_length": 1060}),
    (["--per_device_train_batch_size", "2"], {"batch_size": 2}),
    (["--gradient-accumulation-steps", "3"], {"gradient_accumulation": 3}),
    (["--resume_from_checkpoint", "out/checkpoint-5"], {"resume": True, "output": "out"}),
    (["--resume_from_checkpoint", "True"], {"resume": True}),
    (["--save_total_limit", "0", "--report_to", "none"], {"report_to": ("none",)}),
    (["--adapters", "a", "--optim", "adamw_torch"], {"init_adapter": "a", "optimizer": "adamw"}),
    (["--stage", "sft", "--finetuning_type", "lora", "--do_train", "--template", "glm4"], {}),
    (["--mask_history"], {"train_on": "last"}),
    (["--eval_data", "a", "--eval_data", "b,c"], {"eval_data": ("a", "b", "c")}),
    (["--set", "rank=3", "--set", "packing=yes"], {"rank": 3, "packing": True}),
    (["--set", "rank=3", "--rank", "5"], {"rank": 5}),
    (["--family", "none"], {"family": None}),
    (["--trust_remote_code", "--packing", "--overwrite_cache", "true"], {"packing": True}),
    (["--ddp_timeout", "180", "--do_predict", "--do_train"], {"eval_generate": 0}),
    (["--val_size", "9", "--do_eval", "--predict_with_generate"], {"eval_generate": 32}),
    (["--max_steps", "200", "--warmup_steps", "20"], {"warmup_ratio": 0.1}),
    (["--warmup_steps", "0", "--evaluation_strategy", "no"], {"warmup_ratio": 0.03}),
    (["--save_strategy", "epoch", "--save_steps", "9"], {"save_steps": 0}),
    (["--save_strategy", "steps", "--save_steps", "9"], {"save_steps": 9}),
    (["--torch_dtype", "torch.bfloat16", "--lora_bias", "none"], {"dtype": "bfloat16"}),
    (["--torch_dtype", "fp32", "--double_quantization"], {"dtype": "float32"}),
    (
        ["--load_best_model_at_end", "--early_stopping_patience", "3", "--val_size", "9"],
        {"early_stopping": 3},
    ),
    (["--merge_lora", "false", "--logging_strategy", "steps"], {}),
    (["--adam_beta1", "0.9", "--adam_beta2", "0.999", "--push_to_hub", "no"], {}),
]


@pytest.mark.parametrize(("flags", "expected"), FLAGS, ids=[each[0][0] for each in FLAGS])
def test_flags(finetune, base, flags, expected):
    done = finetune("lora", "--model_name_or_path", base, "--dataset", "d.json#500", *flags)
    assert done.exception is None, done.exception
    config = SEEN[-1]
    assert (config.model, config.data) == (str(base), ("d.json#500",))
    assert {name: getattr(config, name) for name in expected} == expected


def test_flags_of_the_original_scripts(finetune, base):
    done = finetune(
        *("ptuning", "--model", base, "--train_file", "t.json", "--validation_file", "v.json"),
        *("--pre_seq_len", 16, "--prefix_projection", "--quantization_bit", 4),
        *("--prompt_column", "content", "--response_column", "summary", "--history_column", "h"),
        *("--ptuning_checkpoint", "old", "--output_dir", "out", "--overwrite_output_dir"),
    )
    assert done.exception is None, done.exception
    config = SEEN[-1]
    assert (config.pre_seq_len, config.projection, config.quantize) == (16, True, "int4")
    assert (config.prompt_column, config.response_column, config.history_column) == (
        "content",
        "summary",
        "h",
    )
    assert (config.init_adapter, config.output, config.overwrite) == ("old", "out", True)
    assert (config.data, config.eval_data) == (("t.json",), ("v.json",))


FILES = {
    "a.toml": 'lora_rank = 3\nlearning-rate = 1e-3\ndata = ["x", "y"]\npacking = true\n',
    "a.yaml": "lora_rank: 3\nlearning_rate: 1e-3\ndataset: x,y\npacking: true\nbf16: false\n",
    "a.json": '{"rank": 3, "learning_rate": 0.001, "data": ["x", "y"], "packing": "on"}',
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_and_flags_go_before_them(finetune, base, tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert finetune("lora", "--config", name, "--model", base).exception is None
    first = SEEN[-1]
    assert (first.rank, first.learning_rate, first.packing) == (3, 1e-3, True)
    assert first.data == ("x", "y")
    assert finetune("lora", "--config", name, "--model", base, "--rank", 9).exception is None
    assert SEEN[-1].rank == 9 and SEEN[-1].learning_rate == 1e-3


LLAMA_FACTORY = """
model_name_or_path: {base}
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo#20
template: llama3
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
"""Every key of its example of a LoRA."""


def test_a_file_for_llama_factory_works_as_it_is(finetune, base, tmp_path, caplog):
    (tmp_path / "sft.yaml").write_text(LLAMA_FACTORY.format(base=base), encoding="utf-8")
    done = finetune("lora", "--config", "sft.yaml", "--preprocessing_num_workers", 2)
    assert done.exception is None, done.exception
    config = SEEN[-1]
    assert config.data == ("identity#1000", "alpaca_en_demo#20")
    assert (config.rank, config.targets, config.max_length) == (8, ("all",), 2048)
    assert (config.workers, config.dtype, config.warmup_ratio) == (2, "bfloat16", 0.1)
    assert (config.overwrite, config.resume, config.eval_steps) == (True, False, 500)
    assert "trust_remote_code, ddp_timeout, dataloader_num_workers" in caplog.text


FAULTS = [
    (["--set", "lerning_rate=3"], "unknown key 'lerning_rate' in --set; did you mean 'learning_"),
    (["--set", "rank"], "--set takes key=value, got 'rank'"),
    (["--rank", "x"], "rank \\(the command line\\) must be a whole number, got 'x'"),
    (["--rank", "2.5"], "must be a whole number"),
    (["--learning-rate", "nan"], "must be a number, got 'nan'"),
    (["--set", "packing=maybe"], "packing \\(--set\\) must be true or false, got 'maybe'"),
    (["--lora_rank", "4", "--rank", "5"], "lora_rank and rank are the same setting"),
    (["--stage", "rm"], "the recipe is 'lora'; run glmkit finetune reward"),
    (["--stage", "pt"], "stage is 'pt'; the recipe does 'sft'; others: reward, dpo"),
    (["--quantization_bit", "4"], "the recipe 'lora' keeps weights as they are; use glmkit fine"),
    (["--load_in_4bit"], "quantization_bit: the recipe 'lora' keeps.*qlora"),
    (["--warmup_steps", "20"], "give --max-steps too, or the share of the steps: --warmup-ratio"),
    (["--save_strategy", "no"], "--save-total-limit 1"),
    (["--eval_strategy", "no", "--val_size", "9"], "leave out what it is evaluated on"),
    (["--save_strategy", "best"], "save_strategy must be steps or epoch, got 'best'"),
    (["--do_eval"], "do_eval needs something to evaluate on: --eval-data FILE"),
    (["--do_predict"], "do_predict is another command here: glmkit evaluate"),
    (["--load_best_model_at_end"], "needs --early-stopping N"),
    (["--lora_bias", "all"], "lora_bias is 'all'; a LoRA trains no biases"),
    (["--merge_lora"], "glmkit adapters merge BASE OUTPUT"),
    (["--adam_beta2", "0.95"], "AdamW has 0.999 here"),
    (["--finetuning_type", "full"], "the recipe is 'lora'; run glmkit finetune full"),
    (["--set", "pre_seq_len=3"], "unknown key 'pre_seq_len' in --set"),
    (["--batch-size", "0"], "batch_size must be 1 or more, got 0"),
    (["--config", "absent.toml"], "cannot read --config absent.toml"),
    (["--config", "bad.toml"], "bad.toml cannot be read: "),
    (["--config", "deep.toml"], "one table of settings, key and value, without sub-tables"),
    (["--config", "wrong.toml"], "unknown key 'rnk' in wrong.toml; did you mean 'rank'"),
]


@pytest.mark.parametrize(("flags", "says"), FAULTS, ids=[" ".join(each[0]) for each in FAULTS])
def test_what_is_wrong_is_said_in_one_line(finetune, base, tmp_path, flags, says):
    (tmp_path / "bad.toml").write_text("rank = = 3", encoding="utf-8")
    (tmp_path / "deep.toml").write_text("[lora]\nrank = 3", encoding="utf-8")
    (tmp_path / "wrong.toml").write_text("rnk = 3", encoding="utf-8")
    done = finetune("lora", "--model", base, "--data", "d.json", *flags)
    assert isinstance(done.exception, UsageError)
    assert "\n" not in str(done.exception)
    with pytest.raises(UsageError, match=says):
        raise done.exception
    assert not SEEN


def test_recipes_of_others_are_of_any_stage():
    flags = {"stage": "dpo", "do_train": "true", "finetuning_type": "lora", "rank": "4"}
    assert config_of(LoraConfig, "dpo", flags=flags).rank == 4
    with pytest.raises(UsageError, match="stage is 'dpo'.*run glmkit finetune dpo"):
        config_of(LoraConfig, "lora", flags=flags)


def test_a_misspelt_flag_names_the_nearest(finetune, base):
    done = finetune("lora", "--model", base, "--lerning-rate", "1")
    assert done.exit_code == 2 and "--learning-rate" in done.output
    assert not SEEN


def test_without_data_nothing_is_trained(finetune, base):
    done = finetune("lora", "--model", base)
    with pytest.raises(UsageError, match="nothing to train on: give --data"):
        raise done.exception


def test_recipes_are_listed_and_explained(finetune):
    listed = finetune("--list").output
    assert "lora         Small matrices. (third)" in listed
    assert "ptuning" in finetune("--help").output
    shown = finetune("lora", "--help").output
    assert shown.index("LoRA:") < shown.index("Data:") < shown.index("Optimisation:")
    assert "--rank N" in shown and "also --lora_rank" in shown and "[8]" in shown
    for name, says in [("lore", "unknown recipe 'lore'; did you mean 'lora'"), ("none", "recipe")]:
        assert says in str(finetune(name).exception)
    assert "a setting is str, int, float, bool" in str(finetune("odd", "--help").exception)


def test_progress_is_lines_or_json(finetune, base):
    lines = finetune("lora", "--model", base, "--data", "d").output.splitlines()
    assert lines[0] == "found it"
    assert lines[1] == "step 1/2  loss 2.5000  lr 1.00e-03  10 tokens/s  1:01:40 left"
    assert lines[2].startswith("step 2/2  loss 1.5000") and "eval_loss 1.25" in lines[3]
    raw = finetune("lora", "--model", base, "--data", "d", "--json").output.splitlines()
    parsed = [json.loads(each) for each in raw]
    assert parsed[0]["note"] == "found it" and "loss" not in parsed[0]
    assert parsed[2]["metrics"] == {"eval_loss": 1.25}


def test_a_bar_is_drawn_on_a_terminal(monkeypatch, capsys):
    import sys

    from glmkit_finetune import showing

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    showing.show(lora.run(None))
    said = capsys.readouterr().err
    assert "found it" in said and "2/2" in said and "loss 1.5000" in said


def test_small_things_of_a_log():
    log = StepLog(3, 9, metrics={"eval_loss": 2.0}, note="x")
    assert list(others(log)) == ["step 3: eval_loss 2", "x"]
    assert figures(log) == "" and lasting(61) == "1:01"
    assert json.loads(as_line(log)) == {
        "step": 3,
        "total": 9,
        "epoch": 0.0,
        "tokens": 0,
        "metrics": {"eval_loss": 2.0},
        "note": "x",
    }


@pytest.mark.parametrize(
    "config_type", [LoraConfig, QloraConfig, PtuningConfig, FullConfig, FreezeConfig]
)
def test_every_setting_has_a_help_and_a_group(config_type):
    found = settings_of(config_type)
    assert all(each.help and each.group != "this recipe" for each in found)
    defaults = config_type()
    assert {each.name: each.default for each in found} == {
        each.name: getattr(defaults, each.name) for each in found
    }
    given = {each.name: each.default for each in found if each.default is not None}
    assert config_of(config_type, "x", flags=given) == defaults


def test_every_alias_means_a_setting_of_some_recipe():
    known = set()
    for each in (LoraConfig, QloraConfig, PtuningConfig, FullConfig, FreezeConfig):
        known |= {setting.name for setting in settings_of(each)}
    for alias in ALIASES:
        assert set(alias.settings) <= known, alias.name
        assert alias.name not in known, alias.name


def test_resume_needs_nothing_said_again(tmp_path):
    from dataclasses import asdict

    before = LoraConfig(data=("a.json", "b.json#5"), rank=4, output=str(tmp_path), val_size=0.1)
    (tmp_path / "run.json").write_text(json.dumps({"config": asdict(before)}))
    flags = {"resume": "true", "output_dir": str(tmp_path), "logging_steps": "7"}
    again = config_of(LoraConfig, "lora", flags=flags)
    assert (again.data, again.rank, again.val_size) == (before.data, 4, 0.1)
    assert again.resume and again.logging_steps == 7
    fresh = config_of(LoraConfig, "lora", flags={"output": str(tmp_path)})
    assert fresh.rank == 8 and not fresh.data
