"""Peak memory of a GPU that this machine lacks, with a stand-in."""

import pytest
import torch

from dnas.export.memory import with_peak_memory

GPU = torch.device("cuda", 1)


@pytest.fixture
def cuda(monkeypatch):
    """A GPU of 1000 MB, 600 of which are free; PyTorch has reserved 100 and used 20 of these."""

    class Cuda:
        free, reserved, peak, ready = 600e6, 100e6, 20e6, False

        def reset(self, device):
            assert self.ready, "not initialised"

    state = Cuda()
    monkeypatch.setattr(torch.cuda, "init", lambda: setattr(state, "ready", True))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", state.reset)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(state.free), int(1e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(state.reserved))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: int(state.peak))
    return state


def test_memory_of_other_runtimes_counts_and_pytorchs_caches_do_not(cuda):
    def work(look):
        cuda.reserved += 50e6  # PyTorch reserves more than it uses
        cuda.peak += 30e6
        cuda.free -= 50e6 + 200e6  # and another runtime allocates its own
        look()
        cuda.free += 200e6
        return "done"

    assert with_peak_memory(GPU, work) == ("done", pytest.approx(250))
