"""Every error foretoken raises on purpose.

    ForetokenError
    ├── InputError        something the caller gave: a file, a text, a prompt, a number
    ├── BackboneError     the model lacks a property that foretoken needs
    ├── HeadError         heads that do not fit the backbone they are put on
    └── CheckpointError   a directory on disk that cannot be loaded, or trusted

A message is one line: what is wrong, where, and what to do about it. The command line prints it
and exits with status 2; anything else that escapes is a bug.
"""


class ForetokenError(Exception):
    """Root of the tree: catch this to catch everything foretoken raises on purpose."""


class InputError(ForetokenError, ValueError):
    """The caller gave something that cannot be used: a file, a text, a prompt or a number."""


class BackboneError(ForetokenError):
    """The model lacks a property that foretoken needs; the message names the property."""


class HeadError(ForetokenError):
    """Heads do not fit the backbone they are put on."""


class CheckpointError(ForetokenError):
    """A checkpoint directory cannot be loaded: missing, truncated, foreign or of another model."""
