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


def check_field(name: str, value: object, called: str) -> None:
    """Check one size or other number of a model.

    :param name: what we call it.
    :param called: what the file calls it.
    :raises CheckpointError: if it is no whole number within reason, or no finite number above 0.
    """
    if name in _MOST:
        _check_size(name, value, called)
    else:
        _check_number(value, called)


def check_sizes(config: object, names: Iterable[str]) -> None:
    """Check that the named sizes are whole numbers within reason.

    :raises CheckpointError: if one is not.
    """
    for name in names:
        _check_size(name, getattr(config, name), name)


def check_numbers(config: object, names: Iterable[str]) -> None:
    """Check that the named settings are finite numbers above 0.

    :raises CheckpointError: if one is not.
    """
    for name in names:
        _check_number(getattr(config, name), name)


def _check_size(name: str, value: object, called: str) -> None:
    if type(value) is not int or not 1 <= value <= _MOST[name]:
        raise CheckpointError(
            f"config.json: {called} is {value!r}; expected a whole number from 1 to {_MOST[name]}"
        )


def _check_number(value: object, called: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise CheckpointError(f"config.json: {called} is {value!r}; expected a number above 0")
