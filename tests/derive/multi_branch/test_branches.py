"""The selection of branches, and its presentation."""

import json

import pytest
import torch

from derive.multi_branch.branches import SELECTION, BranchScore, select
from derive.multi_branch.report import selection_sections
from dnas.report import ReportData, render_report
from dnas.runs import RunFolder

SCORES = [
    BranchScore((8, 32), 0.5, 4.0, 0.51, argmax_ms=3.0),
    BranchScore((16, 32), None, 4.1, None, argmax_ms=3.0, lost_log_probability=1.25),
]


def test_the_report_tells_the_scores_of_all_combinations(tmp_path):
    scores = [score.__dict__ for score in SCORES]
    content = {"student": {"chosen": [8, 32], "target_ms": 4.0, "scores": scores}}
    with RunFolder.create(tmp_path / "run", "search", {}, 0) as run:
        assert selection_sections(run) == []
        (run.path / SELECTION).write_text(json.dumps(content))
        run.save_weights("architecture", {"student.alpha_8": torch.tensor([[9.0, 0.0], [0.0, 0.0]])})
        page = render_report(ReportData(title="t", search=selection_sections(run)))
    for text in ("1/8, 1/32 (chosen)", "lost log-probability", "1.25", "operators", "0.501", "0.500"):
        assert text in page


@pytest.mark.parametrize(
    ("scores", "target", "chosen"),
    [
        ([(0.5, None, 4.0), (0.6, None, 4.0)], None, 1),
        ([(0.5, True, 4.0), (0.6, False, 9.0)], 4.0, 0),
        ([(0.5, False, 8.0), (0.6, False, 9.0)], 4.0, 0),
        ([(None, None, 8.0), (0.6, None, 9.0)], None, 1),
    ],
)
def test_the_best_that_reaches_the_target_is_selected(scores, target, chosen):
    made = [BranchScore((8,), 0.5, ms, score, reached=reached) for score, reached, ms in scores]
    assert select(made, target) is made[chosen]


def test_a_judged_network_differs_from_the_likeliest_one():
    """Only a change that the latency target asked for is told as a loss of log-probability."""
    told = {"argmax_ms": 3.0, "lost_log_probability": 1.25, "changes": ("a", "b"), "reached": True}
    assert BranchScore((8,), 0.5, 4.0, 0.5, **told).adjustment().endswith("2 changes, log-probability loss 1.25")
    judged = BranchScore((8,), 0.5, 4.0, 0.5, candidates=6, **told)
    assert judged.line().endswith("best of 6  2 choices differ from the likeliest network of 3.000 ms")
