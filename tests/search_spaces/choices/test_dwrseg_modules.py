"""The modules of networks like DWRSeg are those of the paper's network."""

import pytest
import torch

from dnas.choices import WidthChoice
from dnas.networks.dwrseg_blocks import DWRModule, ModuleDesign, SIRModule
from search_spaces.dwrseg_modules.network import ChoiceDWRModule, ChoiceSIRModule


@pytest.mark.parametrize(
    ("searched", "published"),
    [
        (ChoiceSIRModule(16, 3), SIRModule(16)),
        (ChoiceSIRModule(16, 1), SIRModule(16, ModuleDesign(sir_expansion=1))),
        (ChoiceDWRModule(16, (1, 3)), DWRModule(16, (1, 3))),
        (ChoiceDWRModule(16, (1, 3, 5)), DWRModule(16, (1, 3, 5))),
    ],
)
def test_a_module_computes_what_the_published_one_does(searched, published):
    searched, published = searched.double().eval(), published.double().eval()
    theirs = list(published.parameters())
    ours = list(searched.parameters())
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            one.copy_(torch.randn_like(one))
            other.copy_(one)
        features = torch.randn(2, 16, 12, 14, dtype=torch.float64)
        torch.testing.assert_close(searched(features), published(features), rtol=0, atol=1e-9)


def test_a_channel_belongs_to_one_branch_at_every_width():
    width = WidthChoice([8, 16])
    module = ChoiceDWRModule(width, (1, 3))
    assert module.region[0].width is None  # only the module's input and output are as wide as is chosen
    assert module.project.width is width
    assert [branch.groups for branch in module.branches] == [8, 8]
