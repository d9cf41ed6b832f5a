"""Measuring on another device: without torch there, interrupted, over ssh, and with trtexec."""

import getpass
import json
import os
import shutil
import subprocess

import onnx
import pytest

from dnas.cli import main
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.latency.remote import Host, collect, measure_on_host
from dnas.latency.spec import OperatorSpec

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


def test_the_command_refuses_a_precision_that_bundles_do_not_have(tmp_path, capsys):
    out = tmp_path / "bundle"
    options = ["--precision", "bf16", "--out", str(out)]
    assert main(["latency", "bundle", "regseg_demo", *options]) == 2
    assert "expected fp32, fp16, int8" in capsys.readouterr().err
