"""Latency tables of devices that this machine does not have."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dnas.data import load_data_config
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.workflows.measuring import device_to_compare, not_of_this_machine
from dnas.workflows.search import run_search
from search_spaces import load_space
from tests.priced import priced_table


def of_a_phone(table: LatencyTable, kind: str) -> LatencyTable:
    device = dataclasses.replace(table.provenance.device, type=kind, name="Some phone", model=None, cores=None)
    return dataclasses.replace(table, provenance=dataclasses.replace(table.provenance, device=device))


@pytest.mark.parametrize("kind", ["cpu", "nnapi", "coreml"])
def test_a_table_of_a_phone_is_refused_by_its_name_and_taken_when_allowed(tmp_path, kind):
    space, data = load_space("fasterseg_demo"), load_data_config("streets", ["images={train: 4, val: 2}"])
    table = of_a_phone(priced_table(space, lambda _: 1.0), kind)
    assert device_to_compare(table) == torch.device("cpu")
    reason = not_of_this_machine(table, space.input_size)
    assert reason is not None
    assert f"the table's is {kind} Some phone" in reason
    with pytest.raises(UserError, match=f"the table's is {kind} Some phone; .* --allow-mismatch"):
        run_search(space, data, table, tmp_path / "run", device="cpu")
    # What is refused next is an operator that is missing, so that the device has been allowed.
    incomplete = dataclasses.replace(table, entries={})
    with pytest.raises(UserError, match=r"operators are missing|holds no"):
        run_search(space, data, incomplete, tmp_path / "run", device="cpu", allow_mismatch=True)
    assert not (tmp_path / "run").exists()


def test_a_table_of_this_machine_can_be_measured_here_unless_its_runtime_is_missing():
    space = load_space("fasterseg_demo")
    table = priced_table(space, lambda _: 1.0)
    assert not_of_this_machine(table, space.input_size) is None
    other = dataclasses.replace(table, provenance=dataclasses.replace(table.provenance, backend="tflite"))
    reason = not_of_this_machine(other, space.input_size)
    assert reason is not None
    assert "tflite" in reason
