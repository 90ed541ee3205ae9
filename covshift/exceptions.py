"""The errors and warnings of covshift: one family, so that users can catch all or one kind.

Every message names the argument, what came, what was expected, and the way out.
"""

from __future__ import annotations


class CovshiftError(Exception):
    """Base of every error that covshift raises on purpose."""


class InvalidArgumentError(CovshiftError, ValueError):
    """An argument has a value that cannot be used; the message names it and what would do."""


class UnsupportedModelError(CovshiftError, TypeError):
    """A model, or one of its layers, is of a kind that the requested operation cannot handle."""


class ProbeUnsupported(UnsupportedModelError):  # noqa: N818 - a name fixed by the public contract
    """A model that cannot be run beside its own training without disturbing it or other ranks."""


class DatasetError(CovshiftError):
    """The files of a data set are missing, damaged or not what their names promise; the message names the file."""


class RecordingError(CovshiftError):
    """A recording cannot be read or written as asked."""


class RecordingExists(RecordingError, FileExistsError):  # noqa: N818 - a name fixed by the public contract
    """A recording already stands at the path; ``overwrite=True`` replaces it."""


class StoreLocked(RecordingError):  # noqa: N818 - reads like its siblings
    """Another process is writing the recording; the message names its pid and host."""


class ResumeMismatch(RecordingError, InvalidArgumentError):  # noqa: N818 - reads like its siblings
    """The model that resumes a recording is not the one it was begun with; the message says where they differ."""


class RecordingDamaged(RecordingError, ValueError):  # noqa: N818 - reads like its sibling RecordingExists
    """A recording is truncated, lacks a group or variable, or has a schema this version does not know."""


class SignalNotRecorded(RecordingError, KeyError):  # noqa: N818 - reads like its siblings
    """The recording holds no such signal, layer or variable; the message lists what it holds."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CovshiftWarning(UserWarning):
    """Something was not recorded, or not measured, and the run goes on."""
