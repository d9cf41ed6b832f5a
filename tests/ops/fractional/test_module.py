import copy
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import tqdm
from torch import nn

from dnas.errors import UserError
from dnas.networks import Layer, field_of_view
from dnas.ops import FractionalConv2d, clamp_dilations, fractional_conv2d
from dnas.profile import count_multiply_adds, meta_copy


@pytest.fixture(autouse=True)
def no_progress_thread(monkeypatch):
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # the compiler's progress bars would leave a thread behind


@pytest.fixture
def layer() -> FractionalConv2d:
    torch.manual_seed(0)
    return FractionalConv2d(8, 8, dilation=2.5, groups=2, upper=7.5)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 8, 13, 17, generator=torch.Generator().manual_seed(1))


def test_layer_computes_the_function(layer, images):
    expected = fractional_conv2d(images, layer.weight, torch.tensor(2.5), layer.bias, groups=2)
    torch.testing.assert_close(layer(images), expected)
    assert dict(layer.named_parameters()).keys() == {"weight", "bias", "dilation"}
    assert layer.dilation.shape == ()


def test_a_seed_gives_the_weights_of_a_plain_convolution():
    torch.manual_seed(3)
    plain = nn.Conv2d(4, 6, 3)
    torch.manual_seed(3)
    torch.testing.assert_close(FractionalConv2d(4, 6).weight, plain.weight)


@pytest.mark.parametrize(("value", "clamped"), [(0.3, 1.0), (99.3, 7.5), (float("inf"), 7.5)])
def test_clamped_rate_has_a_straight_through_gradient(layer, images, value, clamped):
    with torch.no_grad():
        layer.dilation.fill_(clamped)
    inside = torch.autograd.grad(layer(images).square().sum(), layer.dilation)[0]
    if value < 99:
        with torch.no_grad():
            layer.dilation.fill_(value)
        assert torch.autograd.grad(layer(images).square().sum(), layer.dilation)[0] == inside != 0
    with torch.no_grad():
        layer.dilation.fill_(value)
    clamp_dilations(nn.Sequential(layer))
    assert layer.dilation.item() == layer.rate() == clamped


def test_is_one_layer_for_the_field_of_view(layer):
    assert layer.field_layer() == Layer(3, 1, 2.5)
    assert field_of_view(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), layer), channels=8) == 3 + 2 * 3 * 2


def test_nan_rate(layer, images):
    with torch.no_grad():
        layer.dilation.fill_(float("nan"))
    with pytest.raises(UserError, match="nan"):
        layer(images)
    with pytest.raises(UserError, match="diverged"):
        layer.rate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "kernel 4x4"),
        ({"groups": 3}, "multiples of groups=3"),
        ({"dilation": 0.5}, "dilation rate 0.5"),
        ({"dilation": 9.0, "upper": 8.0}, "upper bound 8"),
        ({"dilation": float("nan")}, "finite"),
    ],
)
def test_invalid_settings(arguments, message):
    with pytest.raises(UserError, match=message):
        FractionalConv2d(8, 8, **arguments)


def test_rate_on_the_meta_device_is_counted_as_an_integer_convolution(layer, images):
    assert meta_copy(layer)(images.to("meta")).shape == layer(images).shape
    assert count_multiply_adds(layer, (13, 17), 8) == 13 * 17 * 8 * 4 * 9


def test_compiles_without_a_graph_break(layer, images):
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for rate in (2.5, 4.0, 6.2):  # no specialisation on the rate either
        with torch.no_grad():
            layer.dilation.fill_(rate)
            compiled.dilation.fill_(rate)
        parameters = [tuple(module.parameters()) for module in (layer, compiled)]
        outputs = [layer(images), compiled(images)]
        gradients = [
            torch.autograd.grad(output.square().sum(), own) for output, own in zip(outputs, parameters, strict=True)
        ]
        torch.testing.assert_close(outputs[1], outputs[0])
        # The rate's gradient sums over all pixels in float32, in an order that the compiler may change.
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(images).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operator_is_registered_correctly(layer, images):
    arguments = (images.requires_grad_(), layer.weight, layer.dilation, layer.bias, 2, 2)
    torch.library.opcheck(torch.ops.dnas.fractional_conv2d.default, arguments)


@pytest.mark.parametrize("rate", [1.0, 2.5, 7.5])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_file_computes_the_same(layer, images, rate):
    with torch.no_grad():
        layer.dilation.fill_(rate)
    layer.requires_grad_(False)
    program = torch.onnx.export(layer, (images,), dynamo=True, opset_version=20, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(output, layer(images).numpy(), atol=1e-5)


TRAINING_OF_ONE_PROCESS = """
import sys
from datetime import timedelta
import torch
from torch.nn.parallel import DistributedDataParallel
from dnas.ops import FractionalConv2d

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=timedelta(seconds=300)
)
layer = FractionalConv2d(8, 8, dilation=2.5, groups=2, upper=7.5)
layer.load_state_dict(torch.load(f"{folder}/layer.pt"))
own = torch.load(f"{folder}/images.pt").chunk(2)[rank]
spread = DistributedDataParallel(layer)  # must stay alive until the gradients are averaged
spread(own).square().mean().backward()
torch.save({name: value.grad for name, value in layer.named_parameters()}, f"{folder}/{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_gradients_of_two_processes_equal_those_of_the_whole_batch(layer, images, tmp_path):
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-W", "ignore", "-c", TRAINING_OF_ONE_PROCESS, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    layer(images).square().mean().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in layer.named_parameters():
            torch.testing.assert_close(found[name], value.grad, rtol=1e-4, atol=1e-6)


def test_gradient_descent_finds_the_rate():
    torch.manual_seed(0)
    target = FractionalConv2d(4, 4, dilation=3.3, bias=False, upper=6)
    learner = FractionalConv2d(4, 4, dilation=2.2, bias=False, upper=6)
    learner.weight = target.weight
    images = torch.randn(4, 4, 24, 24)
    images = nn.functional.avg_pool2d(images, 5, 1, 2)  # smooth, so that the loss has no local minima in the rate
    optimiser = torch.optim.Adam([learner.dilation], lr=0.1)
    for _ in range(80):
        optimiser.zero_grad()
        (learner(images) - target(images).detach()).square().mean().backward()
        optimiser.step()
        clamp_dilations(learner)
    assert learner.rate() == pytest.approx(3.3, abs=0.05)
