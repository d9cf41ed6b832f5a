from __future__ import annotations

import io

from rich.console import Console

from dnas.training import RichProgress


def _shown(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with RichProgress(console) as progress:
        progress.begin("retrain 1/2", 4)
        progress.advance(2, loss=0.12345, learning_rate=0.01)
        progress.message("epoch 1/2: loss 0.1 [done]")
        progress.begin("validate 1/2", 3)
        progress.advance()
        progress.message("end")
    return console.file.getvalue()


def test_a_terminal_sees_bars_with_figures():
    shown = _shown(terminal=True)
    for text in ("retrain 1/2", "2/4", "loss 0.1235  learning rate 0.01", "validate 1/2"):
        assert text in shown


def test_a_file_gets_the_messages_alone():
    assert _shown(terminal=False).splitlines() == ["epoch 1/2: loss 0.1 [done]", "end"]
