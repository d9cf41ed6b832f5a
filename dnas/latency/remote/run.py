"""Measures the operators of this folder. Copy the folder to the device and run: python3 run.py

It needs Python 3.8 or newer, numpy, and onnxruntime for .onnx or ai-edge-litert (or tflite-runtime) for .tflite files,
and nothing of the package that wrote the folder. What is measured is kept in results.jsonl at once: after an
interruption, run it again and it continues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

RESULTS = "results.jsonl"
TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


def main(arguments: Optional[List[str]] = None) -> int:
    """Measure what is missing; 0 if everything is measured, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Measure the operators of this folder.")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of an operator; default: one per core")
    parser.add_argument("--provider", help="execution provider of ONNX Runtime; default: CPUExecutionProvider")
    parser.add_argument("--device-name", default=None, help="name of the device for the table")
    options = parser.parse_args(arguments)
    folder = Path(__file__).resolve().parent
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    threads = options.threads or os.cpu_count() or 1
    try:
        if manifest.get("file_format", "onnx") == "tflite":
            runtime: Any = LiteRuntime(options.provider, threads)
        else:
            runtime = OnnxRuntime(options.provider or "CPUExecutionProvider", threads)
    except (ValueError, ImportError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    try:
        Measuring(folder, manifest, runtime, options.device_name).run()
    except KeyboardInterrupt:
        print("run.py: interrupted; what was measured is kept, run it again to continue", file=sys.stderr)
        return 130
    return 0


class Measuring:
    """Measures in interleaved rounds over all operators, and appends each round to the results."""

    def __init__(self, folder: Path, manifest: Dict[str, Any], runtime: Any, name: Optional[str]) -> None:
        self.folder, self.manifest, self.runtime, self.name = folder, manifest, runtime, name
        self.effort = manifest["effort"]
        self.prepared: Dict[str, Callable[[], Any]] = {}

    def run(self) -> None:
        """Measure every round that is missing in the results."""
        done = self.done()
        operators = {entry["key"]: entry for entry in self.manifest["operators"]}
        rounds = int(self.effort["rounds"])
        total = rounds * len(operators)
        count = sum(min(rounds, done.get(key, 0)) for key in operators)
        self.append({"session": self.described()})
        started = time.monotonic()
        for number in range(rounds):
            keys = [key for key in operators if done.get(key, 0) <= number]
            random.Random(f"0/{number}").shuffle(keys)
            for key in keys:
                entry = self.round(operators[key])
                self.append({"key": key, "round": entry})
                count += 1
                print(f"{count}/{total} {key}", flush=True)
        self.append({"finished": {"seconds": time.monotonic() - started, "after": conditions()}})

    def done(self) -> Dict[str, int]:
        """The number of measured rounds of each operator; damaged lines do not count."""
        found: Dict[str, int] = {}
        for record in read_records(self.folder / RESULTS):
            if "key" in record:
                found[record["key"]] = found.get(record["key"], 0) + 1
        return found

    def append(self, record: Dict[str, Any]) -> None:
        """Write one line and wait until it is on disk; a line that was cut off is ended first."""
        path = self.folder / RESULTS
        cut_off = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        with path.open("a", encoding="utf-8") as stream:
            stream.write(("\n" if cut_off else "") + json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def described(self) -> Dict[str, Any]:
        """The device, the software and the settings of this session."""
        return {
            "manifest": self.manifest["id"],
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": {"name": self.name or device_name(), "memory_bytes": memory(), "cores": os.cpu_count()},
            "provider": self.runtime.provider,
            "threads": self.runtime.threads,
            "software": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                **self.runtime.software,
                "system": platform.platform(),
            },
            "before": conditions(),
        }

    def round(self, operator: Dict[str, Any]) -> Dict[str, Any]:
        """Warm up, then take samples: the same as dnas does on its own machine."""
        run = self.call(operator)
        effort = self.effort
        round_s = effort["time_per_entry"] / effort["rounds"]
        estimate = warm_up(run, effort["warm_up_s"])
        calls = max(1, math.ceil(max(effort["sample_s"], round_s / effort["most_samples"]) / estimate))
        samples: List[float] = []
        spent = 0.0
        while not samples or (spent < round_s and len(samples) < effort["most_samples"]):
            seconds = timed(run, calls)
            spent += seconds
            samples.append(1e3 * seconds / calls)
        return {"samples_ms": samples, "calls_per_sample": calls, "throttled": False}

    def call(self, operator: Dict[str, Any]) -> Callable[[], Any]:
        """A function that runs the operator once; some operators stay in memory."""
        key = operator["key"]
        if key not in self.prepared:
            if len(self.prepared) >= 100:
                del self.prepared[next(iter(self.prepared))]
            inputs = [(item.get("name"), values(item["shape"], item["type"])) for item in operator["inputs"]]
            self.prepared[key] = self.runtime.prepare(str(self.folder / operator["file"]), inputs)
        return self.prepared[key]


class OnnxRuntime:
    """Runs .onnx files on bound memory."""

    def __init__(self, provider: str, threads: int) -> None:
        import onnxruntime

        self.module, self.provider, self.threads = onnxruntime, provider, threads
        self.software = {"onnxruntime": onnxruntime.__version__}
        known = onnxruntime.get_available_providers()
        if provider not in known:
            raise ValueError(f"this ONNX Runtime has no {provider}, but {', '.join(known)}")

    def prepare(self, path: str, inputs: List[Tuple[str, Any]]) -> Callable[[], Any]:
        """A function that runs the file once on ``inputs``, by name."""
        options = self.module.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = self.module.InferenceSession(path, options, providers=[self.provider])
        binding = session.io_binding()
        for name, value in inputs:
            binding.bind_cpu_input(name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        return lambda: session.run_with_iobinding(binding)


class LiteRuntime:
    """Runs .tflite files on the CPU, by XNNPACK where it can."""

    provider = "CPU"

    def __init__(self, provider: Optional[str], threads: int) -> None:
        if provider not in (None, self.provider):
            raise ValueError(f"TFLite files are measured on the CPU here, not by {provider}; leave --provider out")
        try:
            from ai_edge_litert.interpreter import Interpreter

            package = "ai-edge-litert"
        except ImportError:
            from tflite_runtime.interpreter import Interpreter  # older boards

            package = "tflite-runtime"
        self.interpreter, self.threads = Interpreter, threads
        self.software = {package: version(package)}

    def prepare(self, path: str, inputs: List[Tuple[str, Any]]) -> Callable[[], Any]:
        """A function that runs the file once on ``inputs``, in their order."""
        interpreter = self.interpreter(path, num_threads=self.threads)
        interpreter.allocate_tensors()
        details = sorted(interpreter.get_input_details(), key=lambda item: str(item["name"]))
        for number, (_, value) in enumerate(inputs):
            interpreter.set_tensor(details[number]["index"], value)
        return lambda: interpreter.invoke()


def warm_up(run: Callable[[], Any], seconds: float) -> float:
    """Run for about ``seconds``, and return an estimate of the seconds of one call."""
    timed(run, 1)
    spent, calls = 0.0, 1
    while True:
        batch = timed(run, calls)
        spent += batch
        if spent >= seconds or calls >= 1 << 20:
            return max(batch / calls, 1e-9)
        calls *= 2


def timed(run: Callable[[], Any], calls: int) -> float:
    """Seconds of ``calls`` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def values(shape: List[int], kind: str) -> Any:
    """Random values, the same in every run."""
    generator = np.random.RandomState(0)
    if kind == "int8":
        return generator.randint(-128, 128, size=shape).astype(np.int8)
    return generator.standard_normal(shape).astype(TYPES[kind])


def read_records(path: Path) -> List[Dict[str, Any]]:
    """The intact lines of the results."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def device_name() -> str:
    """The model of the CPU, or of the board."""
    for path, word in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(":") if word else ("", "", line)
            if name.strip() == word and value.strip("\0 "):
                return value.strip("\0 ")
    return platform.processor() or platform.machine() or "unknown CPU"


def memory() -> int:
    """Bytes of main memory, 0 if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def conditions() -> Dict[str, str]:
    """Load and clock of the device now, as far as they can be read."""
    found = {}
    if hasattr(os, "getloadavg"):
        found["load_average"] = " ".join(f"{value:.2f}" for value in os.getloadavg())
    for name in ("scaling_governor", "scaling_cur_freq"):
        try:
            found[name] = Path("/sys/devices/system/cpu/cpu0/cpufreq/" + name).read_text().strip()
        except OSError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
