"""The errors glmkit raises on purpose.

Every message says what went wrong, what was given, what is allowed and what to do next. The
command line prints a :class:`GlmkitError` as one line; anything else is a bug and keeps its
traceback.

    GlmkitError            exit 1: the work could not be done
    ├── UsageError         exit 2: the request itself is wrong
    │   ├── ConfigError    glmkit.toml, environment or flag with a wrong key or value
    │   └── UnknownNameError  a name that no registry knows; carries the nearest ones
    ├── PluginError        a plugin broke, or two plugins claim one name
    ├── SourceError        a download failed, was cut short or has the wrong checksum
    │   └── OfflineError   the network is needed and switched off
    ├── ServerError        a model server refuses, fails or cannot be reached
    ├── CheckpointError    files on disk are not a model that glmkit can run
    ├── MissingExtraError  an optional dependency is not installed
    ├── WorkerLostError    a row's workers on other machines ended, one after the other
    ├── BusyError          as many wait as may; ask again in a while
    ├── TimeLimitError     an answer was not ready in the time that it was given
    ├── ClosedError        what was asked is being shut down
    ├── OutOfMemoryError   the work needs more memory than there is
    └── DataError          documents, indexes or data sets that cannot be read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GlmkitError(Exception):
    """Root of the errors that a user can act on."""

    exit_code = 1


class UsageError(GlmkitError):
    """The request is wrong: a bad flag, value or combination."""

    exit_code = 2


class ConfigError(UsageError):
    """Configuration holds an unknown key or a value out of range."""


class UnknownNameError(UsageError):
    """A name that nothing registered.

    :param kind: what was looked up, for example ``"model"``.
    :param name: the name as given.
    :param known: every name that would have worked.
    :param hint: what to run or change next.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        names = sorted(set(known))
        close = nearest(name, names)
        if close:
            said = "did you mean " + " or ".join(repr(each) for each in close) + "?"
        elif names:
            said = "known: " + ", ".join(names)
        else:
            said = f"no {kind} is registered"
        if hint:
            said += f" {hint}" if said.endswith("?") else f"; {hint[0].lower()}{hint[1:]}"
        super().__init__(f"unknown {kind} {name!r}; {said}")
        self.kind = kind
        self.name = name
        self.nearest = close


class PluginError(GlmkitError):
    """A plugin failed, or two plugins claim the same name."""


class SourceError(GlmkitError):
    """A model could not be fetched, or what was fetched is not what was promised."""


class OfflineError(SourceError):
    """The network would be needed, and offline mode forbids it."""


class ServerError(GlmkitError):
    """A model server refuses a request, fails, or cannot be reached."""


class CheckpointError(GlmkitError):
    """Files on disk are not a checkpoint that glmkit can run."""


class MissingExtraError(GlmkitError):
    """An optional dependency is missing.

    :param feature: what the user asked for.
    :param package: the package that is not installed.
    :param extra: the extra of glmkit that brings it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed; run: pip install 'glmkit[{extra}]'"
        )


class WorkerLostError(GlmkitError):
    """A row's workers ended while they answered it."""


class BusyError(GlmkitError):
    """As many questions wait as may."""


class TimeLimitError(GlmkitError):
    """An answer was not ready in the time that it was given."""


class ClosedError(GlmkitError):
    """What was asked takes no more questions: it is being shut down."""


class BadStepError(GlmkitError):
    """A step of a training would spoil the model, such as by a reward that is no number."""


class OutOfMemoryError(GlmkitError):
    """The work needs more memory than there is."""


class DataError(GlmkitError):
    """Documents, an index or a data set cannot be read."""


def nearest(name: str, known: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return the known names closest to ``name``, best first, at most ``limit``."""
    return difflib.get_close_matches(name.lower(), list(known), n=limit, cutoff=0.6)
