import io
import sys

from tqdm import tqdm

from vitlab.batch.progress import Board


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play():
    with Board(total=3, width=5, lines=2) as board:
        for number in range(3):
            board.show(number, f"nb {number}", 1, 4)
        board.note("3 running on 2 workers")
        board.show(1, "nb 1", 3, 4)
        board.settle(0, "nb 0", "done")
        board.tick()
        board.show(2, "nb 2", 2, 4)


def test_a_log_gets_one_line_for_each_notebook_that_has_ended(capsys):
    play()
    assert capsys.readouterr() == ("nb 0   done\n", "")


def test_a_terminal_shows_the_whole_and_as_many_notebooks_as_there_is_room_for(monkeypatch, capsys):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "100")
    play()
    drawn = screen.getvalue()
    assert (
        "0 of 3 notebooks" in drawn
        and "1 of 3 notebooks" in drawn
        and "3 running on 2 workers" in drawn
    )
    before, reached, after = drawn.partition("cell 3 of 4")
    # the third has a line once the first has ended
    assert reached and "nb 2" not in before and "nb 2" in after
    assert not list(tqdm._instances)  # none is left open
