from __future__ import annotations

import io

from rich.console import Console

from dnas.progress import RichProgress


def _shown(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with RichProgress(console) as progress:
        progress.begin("retrain 1/2", 4)
        progress.advance(2, loss=0.12345, learning_rate=0.01)
        progress.message("epoch 1/2: loss 0.1 [done]")
        progress.begin("validate 1/2", 3)
        progress.advance()
        progress.begin("measure 2 operators")
        progress.update(3, 10, item="conv [1]", left_s=3601.4)
        progress.message("end")
    return console.file.getvalue()


def test_a_terminal_shows_bars_with_figures():
    shown = _shown(terminal=True)
    for text in ("retrain 1/2", "2/4", "loss 0.1235  learning rate 0.01", "validate 1/2"):
        assert text in shown


def test_a_terminal_shows_the_item_and_the_time_left_that_the_caller_estimates():
    shown = _shown(terminal=True)
    for text in ("measure 2 operators", "3/10", "1:00:01", "conv [1]"):
        assert text in shown


def test_a_file_gets_only_the_messages():
    assert _shown(terminal=False).splitlines() == ["epoch 1/2: loss 0.1 [done]", "end"]


def test_without_a_bar_there_is_nothing_to_move():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with RichProgress(console) as progress:
        progress.advance(loss=1.0)
        progress.update(1, 2)
