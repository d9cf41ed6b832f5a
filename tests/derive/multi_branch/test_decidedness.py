"""How decided a search is, and the warning that it is not."""

import pytest
import torch

from derive.multi_branch.decidedness import ADVICE, decidedness, undecided_warning

LOGITS = {"alpha_8": torch.tensor([[0.0, 0.0], [0.0, 0.0]]), "gamma_8": torch.tensor([[9.0, 0.0, 0.0]])}


def test_entropy_and_margin_of_every_kind_of_choice():
    operators, ratios = decidedness(LOGITS)
    assert (operators.kind, operators.entropy, operators.margin) == ("operators", pytest.approx(1.0), 0.0)
    assert ratios.kind == "expansion ratios"
    assert ratios.entropy < 0.01
    assert ratios.margin > 0.99


@pytest.mark.parametrize("method", list(ADVICE))
def test_an_undecided_search_says_what_helps_its_method(method):
    """The settings that it names are those of the method's configuration."""
    warning = undecided_warning(LOGITS, method)
    assert warning.startswith("warning: undecided: the entropy of the operators is 1.000")
    assert ("architecture_learning_rate" in warning) == (method == "gradient")
    assert ("judged_networks" in warning) == (method == "estimator")
    assert undecided_warning({"alpha_8": torch.tensor([[9.0, 0.0]])}, method) is None
