import pytest
from torch import nn

from dnas.errors import UserError
from dnas.runtimes import import_openvino


class Join(nn.Module):
    """Two inputs at two scales, like a step that fuses branches: folded and unfolded BatchNorms, upsampling."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(4, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.coarse = nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        for module in (self.fine[1], self.norm):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, fine, coarse):
        coarse = nn.functional.interpolate(
            self.coarse(coarse), size=fine.shape[2:], mode="bilinear", align_corners=False
        )
        return self.norm(self.fine(fine) + coarse)


JOIN_SHAPES = ((4, 12, 20), (8, 6, 10))


@pytest.fixture
def join():
    return Join().eval()


@pytest.fixture
def shapes():
    """(C, H, W) of the inputs of ``join``."""
    return JOIN_SHAPES


@pytest.fixture
def openvino():
    try:
        return import_openvino()
    except UserError as error:
        pytest.skip(str(error))
