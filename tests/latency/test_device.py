"""Clocks, caches and throttling of devices that this machine lacks, with stand-ins."""

import sys
import types

import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.latency import Effort, make_setup, measure
from dnas.latency.backends import calls_per_graph
from dnas.latency.cache import cache_flush, last_level_cache, parse_size
from dnas.latency.device import NO_NVML, conditions, driver_version, throttle_probe
from dnas.latency.setup import CudaStopwatch, MeasurementSetup
from dnas.latency.statistics import DeviceRun, time_round

GPU = torch.device("cuda", 1)


class NVMLError(Exception):
    """NVML's error for a query that a GPU does not support."""


@pytest.fixture
def nvml(monkeypatch):
    """NVML with one GPU, whose throttle reasons are the bits in ``reasons``."""
    fake = types.SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=0,
        NVML_CLOCK_MEM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksThrottleReasonHwSlowdown=8,
        nvmlClocksThrottleReasonSwThermalSlowdown=32,
        reasons=0,
        asked=[],
    )

    def unanswered(gpu):
        raise NVMLError

    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByUUID = lambda uuid: fake.asked.append(uuid) or "gpu"
    fake.nvmlDeviceGetCurrentClocksThrottleReasons = lambda gpu: fake.reasons
    fake.nvmlDeviceGetClockInfo = lambda gpu, kind: (1500, 900)[kind]
    fake.nvmlDeviceGetTemperature = lambda gpu, kind: 61
    fake.nvmlDeviceGetPowerUsage = lambda gpu: 250_000
    fake.nvmlDeviceGetEnforcedPowerLimit = unanswered
    fake.nvmlSystemGetDriverVersion = lambda: "600.1"
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="12ab", L2_cache_size=1 << 20)
    )
    return fake


@pytest.mark.parametrize(
    ("reasons", "throttled"), [(0, False), (1, False), (4, True), (8, True), (32, True), (33, True)]
)
def test_a_gpu_throttles_when_nvml_says_so(nvml, reasons, throttled):
    """Bits that do not mean a slowdown (1: the GPU is idle) do not count."""
    probe = throttle_probe(GPU)
    nvml.reasons = reasons
    assert probe() == throttled
    assert nvml.asked == ["GPU-12ab"]


def test_the_state_of_a_gpu_leaves_out_what_it_does_not_tell(nvml):
    nvml.reasons = 40
    assert conditions(GPU) == {
        "clock_sm_mhz": "1500",
        "clock_memory_mhz": "900",
        "temperature_c": "61",
        "power_w": "250.0",
        "throttle_reasons": "hardware slowdown, software, too hot",
    }
    assert driver_version(GPU) == "600.1"


def test_without_nvml_nothing_is_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert throttle_probe(GPU)() is False
    assert conditions(GPU) == {"throttle_reasons": NO_NVML}


class FakeCuda:
    """A GPU as seen through PyTorch: work is queued, and events record the time at which the device reaches them."""

    def __init__(self):
        self.now = 0.0

    def install(self, monkeypatch):
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.now

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
        return self

    def work(self, seconds):
        self.now += seconds


def test_events_enclose_the_calls_and_not_the_flushes(monkeypatch):
    gpu = FakeCuda().install(monkeypatch)
    run, flush = lambda: gpu.work(0.25), lambda: gpu.work(7)
    assert CudaStopwatch(GPU).time(run, 4) == pytest.approx(1.0)
    assert CudaStopwatch(GPU, flush).time(run, 4) == pytest.approx(1.0)
    assert gpu.now == pytest.approx(2 + 4 * 7)


def test_throttling_is_asked_for_while_the_gpu_works(monkeypatch):
    gpu = FakeCuda().install(monkeypatch)
    waits, asked = [], []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waits.append(gpu.now))
    CudaStopwatch(GPU).time(lambda: gpu.work(0.5), 2, lambda: asked.append(len(waits)))
    assert waits == [0.0, 1.0]
    assert asked == [1]
    effort = Effort(rounds=1, time_per_entry=0.01, warm_up_s=0)
    assert time_round(CudaStopwatch(GPU), lambda: gpu.work(0.5), effort, lambda: True).throttled


def test_calls_in_a_graph_count_and_are_timed_on_their_stream(monkeypatch):
    gpu = FakeCuda().install(monkeypatch)
    entered = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: entered.append(stream) or torch.no_grad())
    run = DeviceRun(lambda: gpu.work(0.5), calls=50, stream="side")
    found = time_round(CudaStopwatch(GPU), run, Effort(rounds=1, time_per_entry=0.01, warm_up_s=0))
    assert found.samples_ms == (10.0,)
    assert found.calls_per_sample == 50
    assert set(entered) == {"side"}


@pytest.mark.parametrize(("enqueuing", "running", "bound"), [(0.2, 0.2, True), (0.01, 0.2, False)])
def test_a_host_that_enqueues_too_slowly_is_noticed(monkeypatch, enqueuing, running, bound):
    gpu = FakeCuda().install(monkeypatch)
    host = iter([0.0, enqueuing])
    monkeypatch.setattr("time.perf_counter", lambda: next(host))
    stopwatch = CudaStopwatch(GPU)
    stopwatch.time(lambda: gpu.work(running), 1)
    assert stopwatch.is_host_bound() == bound


@pytest.mark.parametrize(("seconds", "calls"), [(1e-2, 1), (3e-5, 100), (1e-9, 1000)])
def test_a_graph_holds_calls_of_some_milliseconds(seconds, calls):
    assert calls_per_graph(seconds) == calls


def test_on_cuda_the_default_is_a_graph(monkeypatch):
    assert make_setup("cpu").backend == "eager"
    monkeypatch.setattr("dnas.latency.setup.resolve_device", lambda device, mps: GPU)
    assert make_setup("cuda").backend == "cudagraph"
    assert make_setup("cuda", backend="eager").backend == "eager"


def test_mps_is_waited_for(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(1))
    setup = MeasurementSetup(
        device=torch.device("mps"), backend="eager", precision="fp32", memory_format="contiguous", threads=1, batch=1
    )
    assert setup.stopwatch().time(lambda: None, 5) >= 0
    assert len(waits) == 2


@pytest.fixture
def cpus(tmp_path):
    """Four CPUs with two last-level caches, as listed by the kernel."""
    for cpu in range(4):
        for index, (level, size, shared) in enumerate([(1, "32K", cpu), (2, "1M", cpu), (3, "16384K", cpu // 2)]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{text}\n")
    return tmp_path


def test_the_last_level_cache_is_the_kernels(cpus, tmp_path):
    assert last_level_cache(cpus) == (16 << 20, 2)
    size, instances = last_level_cache(tmp_path / "nothing")
    assert size > 1 << 20
    assert instances == 1
    assert parse_size("2M\n") == 2 << 20
    with pytest.raises(ValueError, match="many"):
        parse_size("many")


def test_a_flush_writes_more_than_the_cache(monkeypatch):
    made = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, **options: made.append(zeros(*sizes, **options)) or made[-1])
    monkeypatch.setattr("dnas.latency.cache.last_level_cache", lambda cpus: (1 << 16, 4))
    for threads, instances in ((1, 1), (3, 3), (8, 4)):
        cache_flush(torch.device("cpu"), threads)()
        assert made[-1].nbytes == 2 * instances << 16
        assert bool((made[-1] == 1).all())


def test_cold_and_warm_measure_and_others_are_refused():
    effort = Effort(rounds=1, time_per_entry=0.001, warm_up_s=0, extra_rounds=0)
    found = measure(nn.ReLU(), [torch.zeros(1, 1, 4, 4)], cache="cold", effort=effort)
    assert found.median > 0
    assert make_setup("cpu").cache == "warm"
    with pytest.raises(UserError, match="cache 'lukewarm' is unknown, known: warm, cold"):
        make_setup("cpu", cache="lukewarm")
    with pytest.raises(UserError, match="available on cpu and cuda"):
        cache_flush(torch.device("mps"), 1)
