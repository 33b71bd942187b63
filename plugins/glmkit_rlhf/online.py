"""What PPO and GRPO are told alike. The docstring of an attribute is the help of its flag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from glmkit import Alias, Glmkit, UsageError
from glmkit.training.configs import LoraConfig, check_choice, refuse_half

from .judging import Judging
from .rewards import Weighted, opened, registered

_KL_EVERY = 10


def also(setting: str, names: str) -> tuple[Alias, ...]:
    """Return names by which others know a setting."""
    return tuple(Alias(each, (setting,)) for each in names.split())


def _is_on(value: object) -> bool:
    return str(value).lower() not in ("0", "false", "no", "off", "none")


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(LoraConfig):
    """Settings that ``ppo`` and ``grpo`` share."""

    aliases: ClassVar[tuple[Alias, ...]] = (
        *also("tuning", "finetuning_type tuner_type"),
        *also("reward", "rewards reward_funcs"),
        *also("reward_model", "reward_model_path"),
        *also("max_new_tokens", "max_completion_length response_length"),
        Alias("use_peft", ("tuning",), lambda on: "lora" if _is_on(on) else "full", switch=True),
    )

    # --- rewards ---
    reward: tuple[str, ...] = ()
    """What answers are rewarded for, one or several: a name (length:20, format:think+answer,
    regex:^yes, gsm8k, exact), or a function of yours, module:function or file.py:function."""
    reward_weights: tuple[str, ...] = ()
    """How much each reward counts, the reward model's last; default: 1 each."""
    reward_model: str | None = None
    """The run folder of a reward model (glmkit finetune reward), which rewards answers, too."""
    shuffle_rewards: bool = False
    """Give each answer the reward of another: a control experiment, in which nothing is learnt."""

    # --- answers ---
    max_new_tokens: int = 256
    """Tokens of an answer at most; max-length is that of prompt and answer together."""
    temperature: float = 1.0
    """Of what is drawn, and of the policy that learns."""
    minibatches: int = 1
    """Steps of the optimizer that a round of answers is parted into; a round is batch-size x
    gradient-accumulation x minibatches answers in each process."""
    iterations: int = 1
    """Times that a round of answers is gone over before the next one is written."""
    kl_every: int | None = None
    """Measure the divergence from the first model in every so many rounds where it does not count,
    0: never; default: 10, and 0 where all weights learn, which takes a copy of them."""

    # --- what is trained ---
    tuning: str = "lora"
    """lora, or full: all weights; beside them lies a copy of the first ones."""
    batch_size: int = 8
    """Answers of one pass on one device."""
    learning_rate: float = 1e-5
    """The highest."""
    scheduler: str = "constant"
    """How it falls: cosine, linear, constant, ... as transformers names them."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_choice("tuning", self.tuning, ("lora", "full"))
        if self.tuning == "full":
            refuse_half(self)
        for name in ("max_new_tokens", "minibatches", "iterations"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.kl_every is not None and self.kl_every < 0:
            raise UsageError(f"kl_every must be 0 or more, got {self.kl_every}")
        if not 0.01 <= self.temperature <= 100:
            raise UsageError(f"temperature must be from 0.01 to 100, got {self.temperature}")
        if self.max_new_tokens >= self.max_length:
            raise UsageError(
                f"max_new_tokens {self.max_new_tokens} leaves no room for a prompt within "
                f"max_length {self.max_length}; make one of them smaller or larger"
            )
        self._check_rewards()
        self._check_run()

    def _check_rewards(self) -> None:
        if not self.reward and self.reward_model is None:
            raise UsageError(
                "nothing says what a good answer is: give --reward length:20 (or gsm8k, "
                "regex:PATTERN, format:think+answer, file.py:function), or --reward-model FOLDER"
            )
        count = len(self.reward) + (self.reward_model is not None)
        if self.reward_weights and len(self.reward_weights) != count:
            raise UsageError(
                f"reward_weights are {len(self.reward_weights)} numbers for {count} rewards; give "
                "one for each, the reward model's last"
            )
        for each in self.reward_weights:
            _number("reward_weights", each)

    def _check_run(self) -> None:
        steps = self.minibatches * self.iterations
        for name in ("save_steps", "eval_steps"):  # the best of all evaluations may be kept
            value = getattr(self, name)
            if value % steps:
                raise UsageError(
                    f"{name} {value} is no multiple of the {steps} steps that a round of answers "
                    "takes (minibatches x iterations): checkpoints lie between rounds, so that a "
                    f"resumed run goes on exactly; give {-(-value // steps) * steps}"
                )
        if self.eval_generate:
            raise UsageError(
                "eval_generate compares answers with those of a file; here answers to --eval-data "
                "are written and rewarded anyway: leave it out"
            )
        if self.sharded:
            raise UsageError(
                f"--parallel {self.parallel} spreads the model over processes, and it must write "
                "answers while it learns: leave it out, each process then has the whole model"
            )
        for name in ("packing", "group_by_length", "neftune"):
            if getattr(self, name):
                raise UsageError(f"{name} has no meaning for answers that are yet to be written")

    @property
    def measured_every(self) -> int:
        """In every so many rounds a divergence that does not count is measured; 0: never."""
        if self.kl_every is not None:
            return self.kl_every
        return _KL_EVERY if self.tuning == "lora" else 0

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each reward counts, the reward model's last."""
        if self.reward_weights:
            return tuple(_number("reward_weights", each) for each in self.reward_weights)
        return (1.0,) * (len(self.reward) + (self.reward_model is not None))


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1e9 < value < 1e9:
        raise UsageError(f"{name} must be numbers, one for each reward, got {text!r}")
    return value


def rewards_of(config: OnlineConfig, app: Glmkit | None = None) -> list[Weighted]:
    """Return the rewards that a configuration names.

    :param app: whose plugins offer rewards; None: the installed ones.
    :raises UsageError: if a name leads nowhere, or to something that is no reward.
    """
    plugins = (app or Glmkit()).plugins
    names: Sequence[str] = config.reward
    return opened(names, config.weights[: len(names)], registered(plugins))


def judge_of(config: OnlineConfig, app: Glmkit | None = None) -> Judging | None:
    """Return the reward model that a configuration names, if it names one.

    :raises CheckpointError: if it is none, or its head is damaged.
    """
    if config.reward_model is None:
        return None
    return Judging(Path(config.reward_model).expanduser(), app)
