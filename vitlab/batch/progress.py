"""The live state of a batch in the terminal: a line for all of it, one for each notebook on its
way, and what has ended above.
"""

from __future__ import annotations

from threading import Lock

from tqdm import tqdm

LINE = "{desc}  {bar:24} cell {n_fmt} of {total_fmt}, {elapsed}"
WHOLE = "{desc}  {bar:24} {n_fmt} of {total_fmt} notebooks, {elapsed}{postfix}"


class Board:
    """Lines that rewrite themselves; where the output is no terminal, only what has ended is
    written. Threads may share it.

    total: notebooks of the batch to run; with one, there is no line for the whole. lines: notebooks
    shown at a time."""

    def __init__(self, total: int, width: int = 0, lines: int = 8):
        self.width, self.lines = width, lines
        self._lock, self._bars = Lock(), {}
        self._whole = (
            tqdm(
                desc=f"{'batch':{width}}",
                total=total,
                position=0,
                leave=False,
                disable=None,
                bar_format=WHOLE,
            )
            if total > 1
            else None
        )

    def show(self, number: int, label: str, cell: int, cells: int) -> None:
        """Notebook `number` is at this cell; from the first call on it has a line, if there is room
        for one.
        """
        with self._lock:
            bar = self._bars.get(number)
            if bar is None:
                taken = {other.pos for other in self._bars.values()}
                free = [place for place in range(1, self.lines + 1) if -place not in taken]
                if not free:
                    return
                bar = tqdm(
                    desc=f"{label:{self.width}}",
                    total=cells,
                    position=free[0],
                    leave=False,
                    disable=None,
                    bar_format=LINE,
                )
                self._bars[number] = bar
            bar.n = cell
            bar.refresh()

    def note(self, text: str) -> None:
        """Say on the line of the whole how the crew stands: `2 workers, 2 notebooks running`."""
        if self._whole is not None:
            self._whole.set_postfix_str(text, refresh=False)

    def tick(self) -> None:
        """Let the clocks go on."""
        with self._lock:
            for bar in (self._whole, *self._bars.values()):
                if bar is not None:
                    bar.refresh()

    def close(self, number: int) -> None:
        """Notebook `number` runs no more."""
        with self._lock:
            bar = self._bars.pop(number, None)
            if bar is not None:
                bar.close()

    def settle(self, number: int, label: str, text: str) -> None:
        """Notebook `number` has ended: its line goes, and what became of it is written above."""
        self.close(number)
        self.write(f"{label:{self.width}}  {text}")
        if self._whole is not None:
            self._whole.update(1)

    def write(self, text: str) -> None:
        with self._lock:
            tqdm.write(text)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *exception) -> None:
        for number in list(self._bars):
            self.close(number)
        if self._whole is not None:
            self._whole.close()
