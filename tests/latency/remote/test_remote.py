"""Measuring on another device: without torch there, interrupted, over ssh, and with trtexec."""

import getpass
import json
import os
import shutil
import subprocess
import sys

import onnx
import pytest
import torch

from dnas.cli import main
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.latency.remote import Host, collect, measure_on_host, write_bundle
from dnas.latency.spec import OperatorSpec
from dnas.runtimes.tflite_model import operator_tflite
from tests.latency.remote.conftest import conv, items

KEYS = ["conv in=4x8x16 out=6 stride=2", "join in=4x8x16+4x8x16 out=4 stride=1", "skip in=4x8x16 out=4 stride=1"]


def measure(python, bundle, *arguments, status=0):
    command = [python, bundle / "run.py", "--threads", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done


def test_a_device_without_torch_measures_and_the_table_says_where(bundle, other_python, tmp_path):
    measure(other_python, bundle, "--device-name", "board")
    collect(bundle, tmp_path / "t.json")
    table = LatencyTable.load(tmp_path / "t.json")
    assert list(table.entries) == KEYS
    assert table.lookup(OperatorSpec.from_key(KEYS[1])) > 0
    assert {entry.rounds for entry in table.entries.values()} == {2}
    found = table.provenance
    assert (found.device.type, found.device.name, found.threads) == ("cpu", "board", 1)
    assert (found.backend, found.precision, found.batch, found.input_size) == ("onnxruntime", "fp32", 1, (64, 128))
    assert "onnxruntime" in found.software
    assert "torch" not in found.software
    with pytest.raises(UserError, match="measure what is missing with `dnas latency bundle small --out bundle`"):
        table.lookup(OperatorSpec("conv", ((8, 8, 16),), 6, 2))


def test_an_interrupted_measurement_continues(bundle, other_python, tmp_path):
    measure(other_python, bundle)
    results = bundle / "results.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 3 + 1
    results.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # killed while writing a round
    with pytest.raises(UserError, match=r"3 of 3 operators are not measured yet.*run it on the device again"):
        collect(bundle, tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()
    printed = measure(other_python, bundle).stdout.splitlines()
    assert [line.split()[0] for line in printed] == ["4/6", "5/6", "6/6"]
    table = collect(bundle, tmp_path / "t.json")
    assert (len(table), table.provenance.sittings) == (3, 2)
    assert main(["latency", "collect", str(bundle)]) == 0
    assert LatencyTable.load(bundle / "table.json").entries == table.entries
    assert measure(other_python, bundle).stdout == ""


def test_int8_operators_take_integers(written, other_python, tmp_path):
    bundle = shutil.copytree(written("int8"), tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {item["type"] for row in manifest["operators"] for item in row["inputs"]} == {"int8"}
    measure(other_python, bundle)
    assert collect(bundle, tmp_path / "t.json").provenance.precision == "int8"
    weights = [item for item in onnx.load(bundle / "operators" / "0000.onnx").graph.initializer if len(item.dims) == 4]
    assert {item.data_type for item in weights} == {onnx.TensorProto.INT8}


def test_results_of_another_bundle_or_mixed_sessions_are_refused(bundle, written, other_python, tmp_path):
    measure(other_python, bundle)
    other = shutil.copytree(written("int8"), tmp_path / "other")
    shutil.copy(bundle / "results.jsonl", other)
    with pytest.raises(UserError, match="results of another bundle"):
        collect(other, tmp_path / "t.json")
    measure(other_python, bundle, "--device-name", "another")
    with pytest.raises(UserError, match="sessions with different device"):
        collect(bundle, tmp_path / "t.json")
    assert "has no CUDA" in measure(other_python, bundle, "--provider", "CUDA", status=2).stderr
    with pytest.raises(UserError, match=r"no bundle \(manifest.json is missing\)"):
        collect(tmp_path, tmp_path / "t.json")


def test_over_ssh_with_one_command(bundle, other_python, ssh_server, tmp_path, capsys):
    port, ssh, home = ssh_server
    address = f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
    options = ["--on", address, "--ssh", ssh, "--python", str(other_python), "--threads", "1"]
    assert main(["latency", "collect", str(bundle), "--out", str(tmp_path / "t.json"), *options]) == 0
    assert "3 operators of small" in capsys.readouterr().err
    table = LatencyTable.load(tmp_path / "t.json")
    assert list(table.entries) == KEYS
    assert len(list(home.rglob("results.jsonl"))) == 1
    # The folder there stays: a second call measures nothing again.
    before = (bundle / "results.jsonl").read_text().count('"key"')
    measure_on_host(bundle, Host.parse(address, python=str(other_python), ssh=ssh), arguments=["--threads", "1"])
    assert (bundle / "results.jsonl").read_text().count('"key"') == before


def test_a_host_that_fails_is_one_line(bundle, ssh_server):
    port, ssh, _ = ssh_server
    address = f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
    for options, message in (
        ({"ssh": "no-such-ssh"}, "cannot start no-such-ssh"),
        ({"ssh": "false"}, "127.0.0.1: no message"),
        ({"ssh": ssh, "python": "no-such-python"}, "127.0.0.1: .*not found"),
    ):
        with pytest.raises(UserError, match=message):
            measure_on_host(bundle, Host.parse(address, **options))


def test_addresses():
    host = Host.parse("ssh://me@board.local:2222", ssh="ssh -i key")
    assert (host.user, host.host, host.port) == ("me", "board.local", 2222)
    command = host.command("print(1)", "a b")
    assert command[:2] == ["ssh", "-i"]
    assert command[-3:] == ["--", "me@board.local", "python3 -c 'print(1)' 'a b'"]
    for address in ("board", "ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "http://board", "ssh://x;y"):
        with pytest.raises(UserError, match="expected ssh://HOST"):
            Host.parse(address)


def test_files_of_an_unknown_format_are_not_taken_for_others(bundle, tmp_path):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "file_format": "mlmodel"}))
    with pytest.raises(UserError, match="file_format 'mlmodel', expected onnx or tflite"):
        collect(bundle, tmp_path / "t.json")


def test_the_shell_form_measures_with_trtexec(bundle, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "trtexec").write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case "$word" in\n'
        '--exportTimes=*) printf \'[{"computeMs": 0.25}, {"computeMs": 0.75}]\' >"${word#*=}";; esac; done\n'
        "echo '&&&& RUNNING TensorRT.trtexec [TensorRT v101300]'\n"
    )
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'Board GPU, 8192, 550.1'\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    for expected in (["0000", "0001", "0002"], []):
        done = subprocess.run(["sh", bundle / "run.sh"], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[:-1] == expected
    table = collect(bundle, tmp_path / "t.json")
    assert [entry.median for entry in table.entries.values()] == [0.5] * 3
    found = table.provenance
    assert (found.device.type, found.device.name, found.device.memory_bytes) == ("cuda", "Board GPU", 8192 << 20)
    assert (found.backend, found.software) == ("tensorrt", {"tensorrt": "TensorRT v101300", "driver": "550.1"})


BENCHMARK_MODEL = """#!/bin/sh
case "$*" in *--graph=operators/*--num_threads=2*) ;; *) exit 1;; esac
echo 'INFO: count=9 first=871 curr=516 min=516 max=871 avg=581.4 std=114 p5=516 median=519 p95=871'
echo ''
echo 'INFO: count=1000 first=521 curr=497 min=490 max=6861 avg=637.4 std=60 p5=496 median=518 p95=686'
echo 'INFO: Inference timings in us: Init: 119515, First inference: 871, Warmup (avg): 581.4, Inference (avg): 637.4'
"""


def test_the_shell_form_measures_tflite_files_with_benchmark_model(monkeypatch, tmp_path):
    """A stand-in prints what TensorFlow Lite's benchmark_model does; the files are not run."""
    for name, content in {"require_litert": lambda: None, "operator_tflite": lambda *_: b"TFL3"}.items():
        monkeypatch.setattr(f"dnas.latency.remote.bundle.{name}", content)
    bundle = tmp_path / "bundle"
    write_bundle(items(), bundle, space="small", input_size=(64, 128), file_format="tflite")
    tool = tmp_path / "benchmark_model"  # beside the folder, as on a phone
    tool.write_text(BENCHMARK_MODEL)
    tool.chmod(0o755)
    run = {"env": {**os.environ, "THREADS": "2"}, "capture_output": True, "text": True, "check": False}
    assert len(subprocess.run(["sh", bundle / "run.sh"], **run).stdout.splitlines()) == 16
    (bundle / "benchmark_model" / "0001.5.txt").unlink()
    with pytest.raises(UserError, match="1 of 3 operators are not measured yet"):
        collect(bundle, tmp_path / "t.json")
    assert len(subprocess.run(["sh", bundle / "run.sh"], **run).stdout.splitlines()) == 2
    other = subprocess.run(["sh", bundle / "run.sh", "--use_gpu=true"], **run)
    assert (other.returncode, "other settings" in other.stderr) == (2, True)
    table = collect(bundle, tmp_path / "t.json")
    assert [entry.median for entry in table.entries.values()] == [pytest.approx(0.518)] * 3
    assert {entry.rounds for entry in table.entries.values()} == {5}
    assert (table.provenance.backend, table.provenance.threads) == ("tflite", 2)
    (bundle / "benchmark_model" / "0001.5.txt").write_text("INFO: count=1 avg=nan")
    with pytest.raises(UserError, match="holds no times of benchmark_model"):
        collect(bundle, tmp_path / "t.json")


def test_operators_as_tflite_compute_the_same_and_are_measured(written, tmp_path):
    """Needs the extra dnas[tflite], whose pins exclude current packages, so that the gate does not install it."""
    pytest.importorskip("litert_torch", reason="needs LiteRT Torch: pip install dnas[tflite]")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    bundle = shutil.copytree(written("fp32", "tflite"), tmp_path / "bundle")
    rows = json.loads((bundle / "manifest.json").read_text())["operators"]
    assert [item["shape"] for item in rows[1]["inputs"]] == [[1, 8, 16, 4]] * 2
    model = interpreter.Interpreter(str(bundle / rows[0]["file"]))
    model.allocate_tensors()
    assert "TRANSPOSE" not in {item["op_name"] for item in model._get_ops_details()}
    (output,) = model.get_output_details()
    assert output["shape"].tolist() == [1, 4, 8, 6]
    torch.manual_seed(0)
    module = conv().eval()
    model = interpreter.Interpreter(model_content=operator_tflite(module, [(1, 4, 8, 16)]))
    model.allocate_tensors()
    images = torch.randn(1, 4, 8, 16)
    model.set_tensor(model.get_input_details()[0]["index"], images.permute(0, 2, 3, 1).contiguous().numpy())
    model.invoke()
    found = torch.tensor(model.get_tensor(model.get_output_details()[0]["index"])).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, module(images).detach(), atol=1e-6, rtol=1e-5)
    measure(sys.executable, bundle)
    table = collect(bundle, tmp_path / "t.json")
    assert list(table.entries) == KEYS
    assert (table.provenance.backend, table.provenance.device.type) == ("tflite", "cpu")
    assert measure(sys.executable, bundle, "--provider", "CUDA", status=2).stderr.startswith("run.py: TFLite files")


def test_a_format_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(UserError, match=r"LiteRT Torch is not installed.*dnas\[tflite\]"):
        write_bundle(items(), tmp_path / "bundle", space="small", input_size=(64, 128), file_format="tflite")
    assert not (tmp_path / "bundle").exists()
    options = {"space": "small", "input_size": (64, 128), "file_format": "tflite", "precision": "int8"}
    with pytest.raises(UserError, match="precision 'int8' of a bundle of tflite files: expected fp32"):
        write_bundle(items(), tmp_path / "bundle", **options)


def test_the_command_refuses_a_precision_that_bundles_do_not_have(tmp_path, capsys):
    out = tmp_path / "bundle"
    options = ["--precision", "bf16", "--out", str(out)]
    assert main(["latency", "bundle", "regseg_demo", *options]) == 2
    assert "expected fp32, fp16, int8" in capsys.readouterr().err
