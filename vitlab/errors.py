"""Errors that a user can cause and correct. The command line prints them as one line."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong name, value or file. The message says what is wrong, where, and what to write.

    >>> raise UserError("epochs must be at least 1, got 0")
    Traceback (most recent call last):
    vitlab.errors.UserError: epochs must be at least 1, got 0
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was asked for does not exist."""
