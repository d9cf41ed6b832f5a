"""The provenance of a table."""

import getpass
import json
import platform

import pytest

from dnas.config import to_mapping
from dnas.latency import Effort, make_setup
from dnas.latency.provenance import portable_command, start_provenance


@pytest.mark.parametrize(
    ("command", "portable"),
    [
        ("dnas latency build fasterseg --out t.json", "dnas latency build fasterseg --out t.json"),
        ("dnas latency build s --out latency_tables/t.json", "dnas latency build s --out latency_tables/t.json"),
        ("dnas latency build /home/me/s.yaml --out=/tmp/a/t.json", "dnas latency build s.yaml --out=t.json"),
        ("dnas latency build ~/s.yaml --out ../x/t.json", "dnas latency build s.yaml --out t.json"),
        ("dnas x --set 'target.input_size=[64, 96]'", "dnas x --set 'target.input_size=[64, 96]'"),
        ("dnas x --set network.options.file=/srv/n.pt", "dnas x --set network.options.file=n.pt"),
        ("dnas x --out '/tmp/two words.json'", "dnas x --out 'two words.json'"),
    ],
)
def test_a_command_names_no_folder_of_this_machine(command, portable):
    assert portable_command(command) == portable
    assert portable_command(portable) == portable


def test_provenance_names_neither_user_nor_host():
    found = start_provenance(
        make_setup("cpu"), Effort(), space="/root/x/s.yaml", input_size=(8, 8), command="dnas a /root/x/s.yaml"
    )
    assert (found.space, found.command) == ("s.yaml", "dnas a s.yaml")
    text = json.dumps(to_mapping(found))
    for private in (platform.node(), f"/{getpass.getuser()}"):
        assert len(private) < 2 or private not in text
