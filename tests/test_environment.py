from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
import torch

import dnas
from dnas.device import device_name
from dnas.environment import describe_environment, process_rank, source_commit


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A package in a checkout of one commit; returns git with that folder as its working directory."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    identity = {f"GIT_{role}_{key}": "x@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout.strip()

    package = tmp_path / "dnas"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(dnas, "__file__", str(package / "__init__.py"))
    return git


def test_the_commit_is_that_of_the_checkout_and_says_whether_files_differ(checkout, tmp_path):
    assert source_commit() == checkout("rev-parse", "HEAD")
    (tmp_path / "dnas" / "__init__.py").write_text("changed = True\n")
    assert source_commit() == checkout("rev-parse", "HEAD") + "-dirty"


def test_an_installed_package_has_no_commit(checkout, tmp_path, monkeypatch):
    """Neither outside of any checkout nor in a virtual environment inside another project's checkout."""
    installed = tmp_path / "venv" / "dnas"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(dnas, "__file__", str(installed / "__init__.py"))
    assert source_commit() is None
    shutil.rmtree(tmp_path / ".git")
    assert source_commit() is None


def test_an_environment_is_plain_and_names_the_device_and_the_versions():
    found = describe_environment("cpu")
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == device_name(torch.device("cpu"))
    assert (found["torch"], found["dnas"]) == (torch.__version__, dnas.__version__)
    assert found["date"].endswith("+00:00")


def test_the_rank_is_that_of_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert process_rank() == 0
    monkeypatch.setenv("RANK", "3")
    assert process_rank() == 3
