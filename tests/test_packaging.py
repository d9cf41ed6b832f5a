from __future__ import annotations

import configparser
import email
import importlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import dnas

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dnas", "search_spaces", "derive", "latency_tables")

# The public interface (module, name, attributes); renaming one of these breaks other programs.
CONTRACTS = [
    ("dnas.networks", "create_network", ()),
    ("dnas.networks", "list_networks", ()),
    ("dnas.networks", "field_of_view", ()),
    ("dnas.latency", "LatencyTable", ("load", "save", "lookup")),
    ("derive", "Architecture", ("load", "save", "build")),
    ("dnas.cli", "main", ()),
]

IMPORT_EVERYTHING = """
import importlib, json, logging, os, pkgutil, random, signal, sys, threading, warnings
from pathlib import Path

# Third parties first: what they do when they are imported is theirs.
import accelerate, jinja2, matplotlib.pyplot, numpy, onnx, onnxruntime, onnxscript, PIL.Image, pydantic, rich.progress
import scipy.stats, timm, torch, torch._dynamo, torch.export, torchmetrics.classification, torchvision.transforms.v2
import typer

def state():
    return {
        "environment": dict(os.environ),
        "folder": sorted(os.listdir()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "random": [str(random.getstate()), str(numpy.random.get_state()), torch.get_rng_state().sum().item()],
        "torch": [torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
                  torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()],
        "matplotlib": [str(dict(matplotlib.rcParams)), matplotlib.pyplot.get_fignums()],
        "logging": [str(logging.root.handlers), logging.root.level],
        "filters": [str(entry) for entry in warnings.filters],
        "path": list(sys.path),
    }

names = []
before = state()
with warnings.catch_warnings():
    warnings.simplefilter("error")
    inside = state()["filters"]
    for package in sys.argv[1:]:
        names.append(package)
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, package + "."):
            if not found.name.endswith("__main__"):
                names.append(found.name)
                importlib.import_module(found.name)
    filters_kept = state()["filters"] == inside
after = state()
changed = [name for name in before if before[name] != after[name]] + ([] if filters_kept else ["filters"])
print(json.dumps({"modules": names, "changed": changed}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.iterdir()
    assert path.name == f"dnas-{dnas.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        yield archive


def _metadata_folder() -> str:
    return f"dnas-{dnas.__version__}.dist-info"


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: zipfile.ZipFile):
    top = {PurePosixPath(name).parts[0] for name in wheel.namelist()}
    assert top == {*PACKAGES, _metadata_folder()}


def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile):
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    held = {name for name in wheel.namelist() if not name.startswith(_metadata_folder())}
    assert held == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert {"dnas/data/presets/camvid.yaml", "dnas/data/classes/camvid.yaml"} <= held
    assert {"dnas/report/templates/report.html.j2", "search_spaces/fasterseg/presets/fasterseg_demo.yaml"} <= held
    assert "dnas/runs/folder.py" in held  # a folder name that ignore rules often exclude


def test_the_wheel_describes_itself(wheel: zipfile.ZipFile):
    metadata = email.message_from_bytes(wheel.read(f"{_metadata_folder()}/METADATA"))
    assert metadata["Name"] == "dnas"
    assert metadata["Version"] == dnas.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    extras = {"dev", "nvml", "openvino", "smp", "tensorboard", "tensorrt"}
    assert extras <= set(metadata.get_all("Provides-Extra") or ())
    licence = wheel.read(f"{_metadata_folder()}/licenses/LICENSE").decode()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_command_is_the_function_it_names(wheel: zipfile.ZipFile):
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel.read(f"{_metadata_folder()}/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == {"dnas": "dnas.cli:main"}
    assert callable(importlib.import_module("dnas.cli").main)


def test_the_changelog_knows_this_version():
    assert f"## [{dnas.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(("module", "name", "attributes"), CONTRACTS)
def test_contracts_keep_their_names(module: str, name: str, attributes: tuple[str, ...]):
    value = getattr(importlib.import_module(module), name)
    assert callable(value)
    assert all(callable(getattr(value, attribute)) for attribute in attributes)


@pytest.mark.parametrize("module", PACKAGES)
def test_every_public_name_exists(module: str):
    package = importlib.import_module(module)
    names = getattr(package, "__all__", [])
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(package, name)] == []


def test_importing_every_module_changes_nothing_and_warns_of_nothing(tmp_path: Path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{IMPORT_EVERYTHING}"
    command = [sys.executable, "-c", code, *PACKAGES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result["changed"] == []
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__main__.py"]
    assert len(result["modules"]) == len(files)


def test_importing_the_package_and_asking_for_its_version_loads_no_torch():
    code = "import sys, dnas, dnas.errors, dnas.cli; print(sorted({'torch', 'matplotlib', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_latency_tables_are_found_by_name():
    import latency_tables
    from dnas.errors import UserError
    from dnas.latency import LatencyTable

    for name in latency_tables.table_names():
        with latency_tables.table_file(name) as path:
            assert len(LatencyTable.load(path)) > 0
    with pytest.raises(UserError, match="no_such: unknown latency table, expected one of "):
        latency_tables.table_file("no_such")
