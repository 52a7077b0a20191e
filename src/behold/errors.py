"""Every error that behold raises on purpose, drawn as one tree.

    BeholdError
    ├── CheckpointError        a folder, hub id or weight file cannot be used
    │   ├── CheckpointNotFoundError   no such folder, id or cached copy (also: offline)
    │   ├── UnsupportedModelError     the model_type or a config value is not supported
    │   └── WeightsError              missing, unexpected, wrongly shaped or unsafe weights
    ├── MediaError             a picture cannot be read, is too large, or may not be fetched
    ├── ChatError              messages, template, or the number of pictures and places
    ├── OptionError            an option's value is out of range, clashes, or is not supported
    ├── DeviceError            the device or dtype asked for is not to be had
    ├── CapacityError          a request that can never fit (context length, memory)
    ├── BusyError              the queue is full: the same request may be sent again later
    ├── StructuredOutputError  an answer did not come to an end that its schema allows
    └── MissingDependencyError an optional package is needed; the message says what to install

Each message says what was found, what is allowed, and what to do. Classes that stand for a wrong value also derive
from `ValueError` (and file ones from `OSError`), so that code written for other libraries catches them.
"""

from __future__ import annotations


class BeholdError(Exception):
    """Root of the tree: catch this to catch everything behold raises on purpose."""


class CheckpointError(BeholdError):
    """A folder, hub id or weight file cannot be used."""


class CheckpointNotFoundError(CheckpointError, OSError):
    """No such folder, hub id or cached copy; also raised when offline and nothing is cached."""


class UnsupportedModelError(CheckpointError, ValueError):
    """The model type, or a value in its configuration, is not supported."""


class WeightsError(CheckpointError, ValueError):
    """Weights are missing, unexpected, wrongly shaped, or stored in an unsafe format."""


class MediaError(BeholdError, ValueError):
    """A picture cannot be read, is too large, or may not be fetched."""


class ChatError(BeholdError, ValueError):
    """Messages are malformed, the template refuses them, or pictures and places do not match."""


class OptionError(BeholdError, ValueError):
    """An option's value is out of range, clashes with another, or is not supported."""


class DeviceError(BeholdError, ValueError):
    """The device or dtype asked for is not to be had on this machine."""


class CapacityError(BeholdError, ValueError):
    """A request can never fit: it is longer than the context or larger than the memory set aside."""


class BusyError(BeholdError):
    """The queue is full; `retry_after_s` says when it is worth trying again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StructuredOutputError(BeholdError, ValueError):
    """An answer was cut off before it satisfied its schema, or its values do not satisfy it; `answer` is what came."""

    def __init__(self, message: str, *, answer: str = "") -> None:
        super().__init__(message)
        self.answer = answer


class MissingDependencyError(BeholdError, ImportError):
    """An optional package is needed; the message names the extra to install."""
