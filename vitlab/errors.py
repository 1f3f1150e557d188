"""Errors that a user can cause and put right. The command line prints them as one line; others keep
their traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something asked for is wrong: a name, a value, a file. The message says what, where, and what
    to write instead.

    >>> raise UserError("epochs must be at least 1, got 0")
    Traceback (most recent call last):
    vitlab.errors.UserError: epochs must be at least 1, got 0
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was asked for does not exist."""
