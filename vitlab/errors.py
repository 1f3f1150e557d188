"""Errors that a user can cause and correct. The command line and Jupyter print them as one line."""

from __future__ import annotations

import traceback


class UserError(ValueError):
    """A wrong name, value or file. The message says what is wrong, where, and what to write.

    >>> raise UserError("epochs must be at least 1, got 0")
    Traceback (most recent call last):
    vitlab.errors.UserError: epochs must be at least 1, got 0
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: the message, and the line of the cell."""
        return [f"{type(self).__name__} (line {cell_line(self)} of this cell): {self}"]


class Interrupted(KeyboardInterrupt):
    """A long computation that was stopped by Ctrl+C or Jupyter's Stop button. The message says what
    is kept and how to go on.
    """

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def cell_line(error: BaseException) -> int:
    """The line of the notebook cell or script at which an error was raised; 0 without one."""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == "__main__"
    ]
    return lines[-1] if lines else 0


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was asked for does not exist."""
