"""Every error foretell raises on purpose.

    ForetellError
    ├── InputError        something the caller gave: a file, a text, a prompt, a number
    ├── BackboneError     the model lacks a property that foretell needs
    ├── HeadError         heads that do not fit the backbone they are put on
    └── CheckpointError   a directory on disk that cannot be loaded, or trusted

A message is one line: what is wrong, where, and what to do about it. The command line prints it
and exits with status 2; anything else that escapes is a bug.
"""


class ForetellError(Exception):
    """Root of the tree: catch this to catch everything foretell raises on purpose."""


class InputError(ForetellError, ValueError):
    """The caller gave something that cannot be used: a file, a text, a prompt or a number."""


class BackboneError(ForetellError):
    """The model lacks a property that foretell needs; the message names the property."""


class HeadError(ForetellError):
    """Heads do not fit the backbone they are put on."""


class CheckpointError(ForetellError):
    """A checkpoint directory cannot be loaded: missing, truncated, foreign or of another model."""


def not_installed(package: str, extra: str) -> InputError:
    """What to raise where an optional package is missing: `extra` brings it.

    The bare name is not ours on the package index, so it is never given to an installer.
    """
    return InputError(
        f"{package} is not installed; run `pip install '.[{extra}]'` in a clone of foretell."
    )
