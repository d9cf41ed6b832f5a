"""FasterSeg's published logits: read safely, and derived by both rules."""

import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from derive import MultiBranchArchitecture
from derive.multi_branch import PublishedLogits, decode, predicted_latency_ms
from derive.multi_branch.published_files import OPERATORS
from dnas.errors import UserError
from dnas.networks.fasterseg import TABLE_7, fasterseg_student
from search_spaces.fasterseg import Grid
from search_spaces.fasterseg.published_table import import_published_table


def made_file(layers=9, number=1, columns=5, **extra):
    grid = Grid(layers)
    generator = torch.Generator().manual_seed(layers)

    def table(rows, width):
        return nn.Parameter(torch.randn(rows, width, generator=generator))

    values = {}
    for level in grid.levels:
        values[f"alpha_{number}_{level}"] = table(grid.alpha_rows(level), 5)
        values[f"ratio_{number}_{level}"] = table(grid.gamma_rows(level), columns)
        if level:
            values[f"beta_{number}_{level}"] = table(grid.beta_rows(level), 2)
    return {**values, **extra}


def write(tmp_path, values, old=False):
    path = tmp_path / "arch.pt"
    torch.save(values, path, _use_new_zipfile_serialization=not old)
    return path


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_a_file_is_read_with_its_recorded_figures(tmp_path, old):
    values = made_file(mIoU12=np.float64(0.25), latency12=6.5, mIoU02=np.float32(0.5), latency02=7.0, epoch=3)
    found = PublishedLogits.load(write(tmp_path, values, old))
    assert torch.equal(found.logits["gamma_32"], values["ratio_1_2"])
    assert torch.equal(found.logits["beta_16"], values["beta_1_1"])
    assert not found.logits["alpha_8"].requires_grad
    assert found.plan.grid == Grid(9)
    assert found.plan.end_ratio == 8
    assert found.miou == {(16, 32): 0.25, (8, 32): 0.5}
    assert found.latency_ms == {(16, 32): 6.5, (8, 32): 7.0}
    assert found.best_branches() == (8, 32)


def test_the_columns_are_named_in_the_files_order(tmp_path):
    """alpha: skip, conv, zoomed conv, conv x2, zoomed conv x2; ratio: 4, 6, 8, 10, 12."""
    values = made_file()
    for column, name in enumerate(("skip", "conv", "zoomed_conv", "conv_x2", "zoomed_conv_x2")):
        assert OPERATORS[column] == name
        for level in range(3):
            values[f"alpha_1_{level}"] = torch.eye(5)[column].repeat(9 - level, 1)
            values[f"ratio_1_{level}"] = torch.eye(5)[column].repeat(9 - max(1, level), 1)
        cells = PublishedLogits.load(write(tmp_path, values)).derive([8]).branches[0].cells
        if name == "skip":
            assert cells == ()
        else:
            assert {cell.operator for cell in cells} == {name}
            assert {cell.ratio for cell in cells[:-1]} == {4 + 2 * column}


def test_the_teacher_has_one_ratio_the_widest(tmp_path):
    path = write(tmp_path, made_file(number=0, columns=1))
    teacher = PublishedLogits.load(path, "teacher")
    assert teacher.plan.end_ratio == 12
    for rule in ("paper", "published-code"):
        architecture = teacher.derive([16, 32], rule)
        assert architecture.end_ratio == 12
        assert {cell.ratio for branch in architecture.branches for cell in branch.cells} == {12}
        assert architecture.provenance["which"] == "teacher"
    assert len(teacher.derive([8], "published-code").branches[0].cells) == 9


def test_a_file_of_the_other_architecture_says_so(tmp_path):
    path = write(tmp_path, made_file(number=0, columns=1))
    with pytest.raises(UserError, match=r"holds no logits of the student .* it holds the teacher, give --which teach"):
        PublishedLogits.load(path)
    path = write(tmp_path, made_file())
    with pytest.raises(UserError, match=r"holds no logits of the teacher .* it holds the student, give --which stud"):
        PublishedLogits.load(path, "teacher")
    both = write(tmp_path, {**made_file(), **made_file(number=0, columns=1)})
    assert PublishedLogits.load(both).plan.end_ratio == 8
    assert PublishedLogits.load(both, "teacher").plan.end_ratio == 12
    with pytest.raises(UserError, match="holds no logits of the student"):
        PublishedLogits.load(write(tmp_path, {"something": 1.0}))
    with pytest.raises(UserError, match=r"which 'pupil': expected student or teacher"):
        PublishedLogits.load(both, "pupil")


@pytest.mark.parametrize("layers", [3, 8, 12, 20])
def test_other_numbers_of_layers_are_read(tmp_path, layers):
    found = PublishedLogits.load(write(tmp_path, made_file(layers)))
    assert found.plan.grid == Grid(layers)
    found.derive([8, 32]).check()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha_1_0", torch.zeros(9), r"alpha_1_0: given shape \(9,\), expected \(9, 5\)"),
        ("alpha_1_0", torch.zeros(2, 5), r"alpha_1_0: given shape \(2, 5\), expected \(9, 5\)"),
        ("alpha_1_0", torch.zeros(9, 4), r"alpha_1_0: given shape \(9, 4\), expected \(9, 5\)"),
        ("alpha_1_0", torch.zeros(10, 5), r"alpha_1_0: given shape \(10, 5\), expected \(9, 5\)"),
        ("alpha_1_2", torch.zeros(9, 5), r"alpha_1_2: given shape \(9, 5\), expected \(7, 5\)"),
        ("beta_1_1", torch.zeros(6, 2), r"beta_1_1: given shape \(6, 2\), expected \(7, 2\)"),
        ("beta_1_2", torch.zeros(6), r"beta_1_2: given shape \(6,\), expected \(6, 2\)"),
        ("ratio_1_0", torch.zeros(8, 3), r"ratio_1_0: given shape \(8, 3\), expected \(8, 5\)"),
        ("ratio_1_1", torch.zeros(8, 1), r"ratio_1_1: given shape \(8, 1\), expected \(8, 5\)"),
        ("ratio_1_2", torch.zeros(9, 5), r"ratio_1_2: given shape \(9, 5\), expected \(7, 5\)"),
        ("beta_1_1", None, r"beta_1_1: given nothing, expected a table"),
        ("beta_1_1", [1.0], r"beta_1_1: given list, expected a table"),
        ("beta_1_1", torch.full((7, 2), float("nan")), r"beta_1_1: expected finite"),
        ("beta_1_1", torch.zeros(7, 2, dtype=torch.int64), r"beta_1_1: expected finite floating-point"),
        ("latency12", float("nan"), r"latency12: expected a finite number"),
        ("latency12", "6.4", r"latency12: expected a finite number, given str"),
    ],
)
def test_wrong_tables_are_named_with_both_shapes(tmp_path, name, value, message):
    values = {**made_file(), name: value}
    with pytest.raises(UserError, match=message) as caught:
        PublishedLogits.load(write(tmp_path, {key: entry for key, entry in values.items() if entry is not None}))
    assert "arch.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("form", ["zip", "old", "plain pickle"])
@pytest.mark.parametrize("attack", ["os.system", "eval", "numpy"])
def test_a_file_that_calls_anything_is_refused_and_nothing_runs(tmp_path, form, attack):
    import os

    marker = tmp_path / "ran"
    calls = {
        "os.system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "numpy": Calls(np.save, str(marker), 1),
    }
    values = {**made_file(), "epoch": calls[attack]}
    path = tmp_path / "arch.pt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"alpha_1_0": calls[attack]}, protocol=2))
    else:
        write(tmp_path, values, old=form == "old")
    with pytest.raises(UserError, match=r"arch\.pt: (refused: its pickle imports|not a readable)") as caught:
        PublishedLogits.load(path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]
    if form != "plain pickle":
        assert "nothing was executed" in str(caught.value)


def test_files_that_are_no_logits_are_named(tmp_path):
    path = tmp_path / "arch.pt"
    with pytest.raises(UserError, match="no such file of FasterSeg's published logits"):
        PublishedLogits.load(path)
    stream = io.BytesIO()
    torch.save(made_file(), stream)
    for data in (b"", b"PK\x03\x04", b"\x80\x02}.", b"text", stream.getvalue()[:2000], stream.getvalue()[:-300]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"arch\.pt: "):
            PublishedLogits.load(path)
    for value in ([torch.zeros(3)], {1: torch.zeros(3)}):
        with pytest.raises(UserError, match="expected a dict of tensors by name"):
            PublishedLogits.load(write(tmp_path, value))


def test_too_few_and_too_many_layers_are_named(tmp_path):
    for rows in (0, 2, 65):
        with pytest.raises(UserError, match=f"given logits of {rows} layers, expected 3 to 64"):
            PublishedLogits.load(write(tmp_path, {"alpha_1_0": torch.zeros(rows, 5)}))


def test_wrong_branches_and_rules_are_named(tmp_path):
    found = PublishedLogits.load(write(tmp_path, made_file()))
    for branches in ((), (8, 64), (16, 8), (8, 8)):
        with pytest.raises(UserError, match="expected some of 8, 16, 32"):
            found.derive(branches)
    with pytest.raises(UserError, match="rule 'mine': expected paper or published-code"):
        found.derive([8], "mine")
    short = PublishedLogits.load(write(tmp_path, made_file(5)))
    with pytest.raises(UserError, match=r"given 5 layers .* use the rule paper"):
        short.derive([8], "published-code")


def test_both_rules_give_a_network_that_says_where_it_came_from(tmp_path):
    found = PublishedLogits.load(write(tmp_path, made_file()))
    for rule in ("paper", "published-code"):
        architecture = found.derive([16, 32], rule)
        assert (architecture.num_classes, architecture.input_size) == (None, (1024, 2048))
        expected = {"file": "arch.pt", "space": "fasterseg", "which": "student", "rule": rule}
        assert architecture.provenance == expected
        architecture.save(tmp_path / "a.yaml")
        loaded = MultiBranchArchitecture.load(tmp_path / "a.yaml")
        assert loaded == architecture
        with torch.no_grad():
            assert loaded.build(19).eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 19, 64, 96)


@pytest.fixture(scope="module")
def published(shared):
    folder = shared / "data" / "fasterseg"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder


def test_the_published_code_gives_table_7(published):
    branches = PublishedLogits.load(published / "arch_1.pt").derive(rule="published-code").summary()
    assert [branch["scale"] for branch in branches] == [16, 32]
    for branch in branches:
        rows = tuple((cell["operator"], cell["scale"], cell["ratio"]) for cell in branch["cells"])
        assert rows == TABLE_7[branch["scale"]]
        assert all(cell["channels"] == cell["scale"] * cell["ratio"] for cell in branch["cells"])


def test_the_published_code_gives_the_network_of_the_paper(published):
    derived = PublishedLogits.load(published / "arch_1.pt").derive([16, 32], "published-code").build(19)
    named = fasterseg_student(19)
    assert [(name, p.shape) for name, p in derived.named_parameters()] == [
        (name, p.shape) for name, p in named.named_parameters()
    ]


@pytest.mark.parametrize(
    ("branches", "published_ms", "true_ms", "paper_ms"),
    [((16, 32), 6.41398, 5.70184, 5.32540), ((8, 32), 6.26047, 5.79029, 5.48023)],
)
def test_latencies_by_the_authors_table(published, branches, published_ms, true_ms, paper_ms):
    """``published_ms``: latency12 and latency02 of the file. The other latencies use our table entries."""
    logits = PublishedLogits.load(published / "arch_1.pt")
    lookup = import_published_table(published / "latency_lookup_table.npy").lookup
    architecture = logits.derive(branches, "published-code")
    found = predicted_latency_ms(architecture, lookup, "published-code")
    assert found == pytest.approx(published_ms, abs=1e-5)
    assert found == pytest.approx(logits.latency_ms[branches], abs=1e-9)
    assert float(architecture.provenance["recorded_latency_ms"]) == logits.latency_ms[branches]
    assert predicted_latency_ms(architecture, lookup, "paper") == pytest.approx(true_ms, abs=1e-5)
    by_paper = logits.derive(branches, "paper")
    assert predicted_latency_ms(by_paper, lookup, "paper") == pytest.approx(paper_ms, abs=1e-5)


def test_the_rule_of_the_paper_is_our_decoder(published):
    logits = PublishedLogits.load(published / "arch_1.pt")
    mine = decode(logits.logits, logits.plan, (16, 32))
    assert logits.derive((16, 32), "paper").branches == mine.branches
    coarse = mine.branches[1]
    # beta_0 of scale 32 is by far the largest in its last row (0.8995), which the published code excludes.
    assert [cell.layer + 1 for cell in coarse.cells if cell.stride == 2] == [14, 15]
