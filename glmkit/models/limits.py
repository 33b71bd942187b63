"""How large a model may claim to be: a damaged configuration must not allocate a machine away."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import CheckpointError

_MOST = {
    "vocab_size": 1 << 20,
    "hidden_size": 1 << 15,
    "ffn_size": 1 << 18,
    "layers": 512,
    "heads": 512,
    "kv_heads": 512,
    "head_dim": 1024,
    "context_length": 1 << 24,
}


def check_sizes(config: object, names: Iterable[str]) -> None:
    """Check that the named sizes are whole numbers within reason.

    :raises CheckpointError: if one is not.
    """
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= _MOST[name]:
            raise CheckpointError(
                f"config.json: {name} is {value!r}; expected a whole number from 1 to {_MOST[name]}"
            )


def check_numbers(config: object, names: Iterable[str]) -> None:
    """Check that the named settings are finite numbers above 0.

    :raises CheckpointError: if one is not.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
            raise CheckpointError(f"config.json: {name} is {value!r}; expected a number above 0")
