"""Settings of the libraries below PyTorch."""

import subprocess
import sys

from dnas.library_settings import DEFAULTS, missing_settings


def test_what_the_user_asks_for_stays():
    assert missing_settings({}) == DEFAULTS
    assert missing_settings({"LRU_CACHE_CAPACITY": "8"}).keys() == DEFAULTS.keys() - {"LRU_CACHE_CAPACITY"}
    assert "PYTORCH_ALLOC_CONF" not in missing_settings({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"})
    # OMP_WAIT_POLICY=passive disables the spinning that GOMP_SPINCOUNT limits.
    assert "GOMP_SPINCOUNT" not in missing_settings({"OMP_WAIT_POLICY": "passive"})


def test_the_command_line_asks_before_torch_is_loaded():
    code = """
import os, sys
from dnas.cli.main import main
main(["--version"])
assert "torch" not in sys.modules
print({name: os.environ[name] for name in sys.argv[1:]})
"""
    done = subprocess.run([sys.executable, "-c", code, *DEFAULTS], capture_output=True, text=True, check=True, env={})
    assert done.stdout.splitlines()[-1] == str(DEFAULTS)
