"""What every recipe can be told. The docstring of an attribute is the help of its flag."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the loop and the run folder are told, whatever is trained.

    :raises UsageError: if a value is out of its range.
    """

    # --- what is trained, on what, where to ---
    model: str = "default"
    """The model to train: a name of the catalog, a hub id or a folder."""
    data: tuple[str, ...] = ()
    """Training data."""
    output: str = "output"
    """The run folder."""

    # --- optimisation ---
    epochs: float = 3.0
    """Times that all data is seen."""
    max_steps: int = 0
    """Stop after so many steps; 0: as epochs say."""
    batch_size: int = 4
    """Samples (with packing: rows) of one pass on one device."""
    gradient_accumulation: int = 1
    """Passes of one step."""
    learning_rate: float = 1e-4
    """The highest."""
    scheduler: str = "cosine"
    """How it falls: cosine, linear, constant, ... as transformers names them."""
    warmup_ratio: float = 0.03
    """Share of the steps in which it rises."""
    optimizer: str = "adamw"
    """adamw, adamw_8bit, adafactor or sgd."""
    weight_decay: float = 0.0
    """Of the optimizer."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    seed: int = 42
    """Of the order of the data, the new weights and dropout."""

    # --- device, memory ---
    dtype: str = "auto"
    """Precision of the frozen weights: auto, float32, bfloat16, float16."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; default: the best."""
    gradient_checkpointing: bool = False
    """Work the inside of blocks out again when gradients need it: less memory, more time."""

    # --- running ---
    logging_steps: int = 1
    """Steps between two lines of the log."""
    save_steps: int = 0
    """Steps between checkpoints; 0: one at the end of each epoch."""
    save_total_limit: int = 2
    """Checkpoints that are kept; 0: all."""
    eval_steps: int = 0
    """Steps between evaluations; 0: at the end of each epoch."""
    early_stopping: int = 0
    """Stop after so many evaluations without a lower loss; 0: never."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Who is told the figures: tensorboard, wandb, swanlab, mlflow; none."""
    resume: bool = False
    """Go on from the last checkpoint in output."""
    init_adapter: str | None = None
    """Begin with the weights of this adapter; everything else begins anew."""
    overwrite: bool = False
    """Replace what output holds."""

    def __post_init__(self) -> None:
        """Check the ranges; a subclass calls this first."""
        for name, least in _LEAST.items():
            value = getattr(self, name, least)
            if not value >= least:
                raise UsageError(f"{name} must be {least} or more, got {value!r}")
        for name, most in _MOST.items():
            value = getattr(self, name, most)
            if not value <= most:
                raise UsageError(f"{name} must be {most} or less, got {value!r}")
        if not self.epochs and not self.max_steps:
            raise UsageError("epochs is 0 and max_steps too: nothing would be trained")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name, allowed[0])
            if value not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """The settings that all recipes for language models share; each adds its own in a subclass.

    :raises UsageError: if a value is out of its range.
    """

    # --- what is trained, on what, where to ---
    family: str | None = None
    """What the model is, where its files do not say: chatglm2, chatglm3, ..."""
    data: tuple[str, ...] = ()
    """Training data: files, folders or names in dataset_info.json; FILE#500 takes 500 samples of
    it, FILE@0.3 gives it this weight in the mixture."""
    dataset_dir: str | None = None
    """The folder of dataset_info.json."""
    eval_data: tuple[str, ...] = ()
    """Data to evaluate on while training."""
    val_size: float = 0.0
    """Keep this share of the data (below 1) or so many samples of it for evaluation."""

    # --- data ---
    max_length: int = 1024
    """Tokens of a sample at most."""
    overlong: str = "truncate"
    """What becomes of longer samples: truncate or skip."""
    skip_bad: bool = False
    """Leave out rows that cannot be learnt; default: list them and stop."""
    train_on: str = "all"
    """Which answers are learnt: all of a conversation or the last."""
    system: str | None = None
    """The system message of samples that have none; default: the model's own."""
    prompt_column: str | None = None
    """The column of the question, where it is not detected."""
    response_column: str | None = None
    """The column of the answer, where it is not detected."""
    history_column: str | None = None
    """The column of earlier turns, where it is not detected."""
    packing: bool = False
    """Fill every row up to max-length with whole samples, which do not see each other."""
    group_by_length: bool = False
    """Put samples of like length together; there are no pads that it could save here."""

    cache: str | None = None
    """The folder that keeps tokens, and what heads read, for other runs; default: glmkit's own."""
    workers: int = 0
    """Processes that tokenise; 0: one for each core."""

    # --- optimisation ---
    neftune: float = 0.0
    """Noise on the embeddings (NEFTune's alpha, 5 for example); 0: none."""

    # --- device, memory ---
    device: str | None = None
    """cpu, cuda, cuda:1, or several that share the layers: cuda:0,cuda:1; default: the best."""
    max_memory: str | None = None
    """Most that may be taken of each device: 0=10GiB,cpu=30GiB."""
    memory_check: bool = True
    """Foretell the memory before anything is loaded, and refuse what does not fit."""
    parallel: str = "ddp"
    """How several processes share the work: ddp, fsdp, zero1, zero2, zero3."""
    offload: bool = False
    """Keep parameters and optimizer states in the processor's memory (fsdp, zero2, zero3)."""
    nproc: int = 1
    """Processes to start on this machine; under torchrun, accelerate or deepspeed: theirs."""
    deepspeed: str | None = None
    """A DeepSpeed configuration of your own."""

    # --- running ---
    eval_generate: int = 0
    """Answer so many samples of the evaluation data each time, too, and score the answers."""
    eval_max_tokens: int = 128
    """Tokens of such an answer at most."""

    def __post_init__(self) -> None:
        """Check the ranges; a subclass calls this first."""
        super().__post_init__()
        for name in ("early_stopping", "eval_generate", "eval_steps"):
            if getattr(self, name) and not self.eval_data and not self.val_size:
                raise UsageError(
                    f"{name} {getattr(self, name)!r} needs something to evaluate on: give "
                    "--eval-data FILE or --val-size 0.05"
                )

    @property
    def sharded(self) -> bool:
        """Whether parameters or optimizer states are spread over processes."""
        return self.parallel != "ddp"


_LEAST: dict[str, float] = {
    "max_length": 8,
    "epochs": 0,
    "max_steps": 0,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "learning_rate": 0,
    "warmup_ratio": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "neftune": 0,
    "nproc": 1,
    "logging_steps": 1,
    "save_steps": 0,
    "save_total_limit": 0,
    "eval_steps": 0,
    "early_stopping": 0,
    "val_size": 0,
    "workers": 0,
    "eval_generate": 0,
    "eval_max_tokens": 1,
}
_MOST: dict[str, float] = {"warmup_ratio": 1}
_CHOICES: dict[str, tuple[str, ...]] = {
    "overlong": ("truncate", "skip"),
    "train_on": ("all", "last"),
    "parallel": ("ddp", "fsdp", "zero1", "zero2", "zero3"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
}


def names(config_type: type[RunConfig]) -> list[str]:
    """Return the names of all settings of a recipe."""
    return [each.name for each in fields(config_type)]
