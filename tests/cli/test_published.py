"""FasterSeg's published files through the command line: import, derive by both rules, use the results."""

import json

import pytest
import torch
from PIL import Image

from derive import Architecture
from dnas.cli import main
from dnas.networks.fasterseg import TABLE_7
from dnas.runs import RunFolder
from dnas.workflows.initial import initialise
from dnas.workflows.networks import build_network, load_network
from search_spaces import load_space
from search_spaces.fasterseg import Grid


def run(capsys, *arguments):
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def fail(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.fixture
def logits(tmp_path):
    grid = Grid(9)
    generator = torch.Generator().manual_seed(0)
    values = {"latency12": 1.0}
    for level in grid.levels:
        values[f"alpha_1_{level}"] = torch.randn(grid.alpha_rows(level), 5, generator=generator)
        values[f"ratio_1_{level}"] = torch.randn(grid.gamma_rows(level), 5, generator=generator)
        if level:
            values[f"beta_1_{level}"] = torch.randn(grid.beta_rows(level), 2, generator=generator)
    torch.save(values, tmp_path / "arch.pt")
    return tmp_path / "arch.pt"


@pytest.mark.parametrize("rule", ["paper", "published-code"])
def test_without_a_table_the_latency_is_null(logits, tmp_path, capsys, rule):
    out = tmp_path / "a.yaml"
    content = json.loads(run(capsys, "derive", logits, "--out", out, "--rule", rule, "--branches", "8,32", "--json"))
    assert content["rule"] == rule
    assert content["latency_ms"] is None
    assert [branch["scale"] for branch in content["branches"]] == [8, 32]
    for branch in content["branches"]:
        assert all(cell["channels"] == cell["scale"] * cell["ratio"] for cell in branch["cells"])
    assert Architecture.load(out).provenance["rule"] == rule


@pytest.mark.parametrize("rule", ["paper", "published-code"])
def test_the_architecture_is_benchmarked_and_retrained(logits, tmp_path, capsys, rule):
    out = tmp_path / "a.yaml"
    run(capsys, "derive", logits, "--out", out, "--rule", rule)
    options = ["--size", "64x96", "--seconds", "0.02", "--threads", "1", "--json"]
    assert json.loads(run(capsys, "benchmark", out, *options))["multiply_adds"] > 0
    for split in ("train", "val"):
        for kind, mode in (("images", "RGB"), ("labels", "L")):
            folder = tmp_path / "data" / split / kind
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new(mode, (96, 64), 7).save(folder / f"{number}.png")
    lines = [f"  - {{name: c{index}, colour: [{index}, 0, 0]}}" for index in range(19)]
    (tmp_path / "data" / "classes.yaml").write_text("classes:\n" + "\n".join(lines) + "\n")
    short = ["epochs=1", "batch_size=2", "workers=0", "augmentation.crop=[64, 96]", "precision=fp32"]
    command = ["retrain", out, "--data", f"folder:{tmp_path / 'data'}", "--out", tmp_path / "run", "--device", "cpu"]
    run(capsys, *command, *(part for setting in short for part in ("--set", setting)))
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_mistakes_are_one_line(logits, tmp_path, capsys):
    out = tmp_path / "a.yaml"
    assert "expected paper or published-code" in fail(capsys, "derive", logits, "--out", out, "--rule", "mine")
    assert "give --which student" in fail(capsys, "derive", logits, "--out", out, "--which", "teacher")
    assert "expected some of 8, 16, 32" in fail(capsys, "derive", logits, "--out", out, "--branches", "8,64")
    space, data = load_space("fasterseg_demo").configuration(), {"dataset": "streets"}
    with RunFolder.create(tmp_path / "run", "search", {"preset": "x", "space": space, "data": data}, 0, False):
        pass
    message = fail(capsys, "derive", tmp_path / "run", "--out", out, "--rule", "published-code")
    assert "contains no weights named architecture" in message  # accepted for runs, but this one is empty
    assert "no such run folder" in fail(capsys, "derive", tmp_path / "none.pt", "--out", out)
    assert "not a FasterSeg latency table" in fail(capsys, "latency", "import", logits, "--out", tmp_path / "t.json")
    assert not out.exists()
    assert not (tmp_path / "t.json").exists()


@pytest.fixture
def published(shared):
    folder = shared / "data" / "fasterseg"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder


def test_the_published_results_come_out(published, tmp_path, capsys):
    table, out = tmp_path / "T.json", tmp_path / "a.yaml"
    run(capsys, "latency", "import", published / "latency_lookup_table.npy", "--out", table)
    shown = json.loads(run(capsys, "latency", "show", table, "--space", "fasterseg", "--json"))
    assert shown["summary"]["device"] == "NVIDIA GeForce GTX 1080 Ti"
    assert shown["sensitivities"]["change_ms"]["operator"] == pytest.approx(7.488, abs=1e-3)
    for branches, latency_ms in (("16,32", 6.41398), ("8,32", 6.26047)):
        command = ["derive", published / "arch_1.pt", "--out", out, "--rule", "published-code", "--table", table]
        content = json.loads(run(capsys, *command, "--branches", branches, "--json"))
        assert content["rule"] == "published-code"
        assert content["latency_ms"] == pytest.approx(latency_ms, abs=1e-4)
        for branch in content["branches"]:
            rows = tuple((cell["operator"], cell["scale"], cell["ratio"]) for cell in branch["cells"])
            assert rows == TABLE_7.get(branch["scale"], rows)
    assert Architecture.load(out).num_classes is None  # fits any dataset


def test_a_table_of_another_size_is_refused(published, tmp_path, capsys):
    from dnas.latency import LatencyTable
    from search_spaces.fasterseg.published_table import import_published_table

    imported = import_published_table(published / "latency_lookup_table.npy")
    other = type(imported.provenance)(**{**imported.provenance.__dict__, "input_size": (512, 1024)})
    LatencyTable(other, imported.entries).save(tmp_path / "other.json")
    command = ["derive", published / "arch_1.pt", "--out", tmp_path / "a.yaml", "--table", tmp_path / "other.json"]
    assert "is for images of 512x1024" in fail(capsys, *command)


def test_networks_by_name_are_retrained_with_their_options(tmp_path, capsys):
    common = ["--data", "rectangles", "--data-set", "size=[64,64]", "--data-set", "images={train: 4, val: 1, test: 1}"]
    common += ["--set", "epochs=1", "--set", "batch_size=2", "--set", "augmentation.crop=[64,64]", "--device", "cpu"]
    options = ["--network-set", "rates=[[1,2]]", "--network-set", "width=32"]
    run(capsys, "retrain", "regseg_small", *options, "--out", tmp_path / "small", *common)
    loaded = load_network(str(tmp_path / "small"))
    assert len(loaded.network.backbone.blocks) == 1
    assert RunFolder.open(tmp_path / "small").configuration["network"]["options"] == {"rates": [[1, 2]], "width": 32}
    wrong = ["--recipe", "fasterseg_demo", "--network-set", "depth=3", "--out", tmp_path / "x"]
    assert "options {'depth': 3} do not fit" in fail(capsys, "retrain", "regseg_small", *wrong, *common)
    run(capsys, "retrain", "torchvision:lraspp_mobilenet_v3_large", "--out", tmp_path / "lraspp", *common)
    assert load_network(str(tmp_path / "lraspp")).num_classes == 6


SMALL = ["--data", "rectangles", "--data-set", "size=[64,64]", "--data-set", "images={train: 4, val: 2, test: 1}"]
SMALL += ["--set", "epochs=1", "--set", "batch_size=2", "--set", "augmentation.crop=[64,64]", "--device", "cpu"]


def test_a_training_begins_with_other_weights(tmp_path, capsys):
    size = ["--network-set", "rates=[[1,2]]", "--network-set", "width=32"]
    run(capsys, "retrain", "regseg_small", *size, "--out", tmp_path / "first", *SMALL)
    wider = ["--network-set", "rates=[[1,2],[1,2]]", "--network-set", "width=32", "--init", tmp_path / "first"]
    options = [*SMALL, "--set", "learning_rate=1.0e-12", "--set", "freeze_norms=true", "--set", "trained_on=trainval"]
    run(capsys, "retrain", "regseg_small", *wider, "--out", tmp_path / "second", *options)
    before, after = (RunFolder.open(tmp_path / name).load_weights("best") for name in ("first", "second"))
    torch.testing.assert_close(after["backbone.stem.0.weight"], before["backbone.stem.0.weight"])
    report = json.loads((tmp_path / "second" / "initial_weights.json").read_text())
    assert set(report["taken"]) == set(before)
    assert report["missing"]
    assert all(name.startswith("backbone.blocks.1") for name in report["missing"])
    assert len(RunFolder.open(tmp_path / "second").records("step")) == 3
    # Classes of other names: their layers are left out, by the names of the run that is edited here.
    written = tmp_path / "first" / "configuration.yaml"
    names = RunFolder.open(tmp_path / "first").configuration["classes"]
    written.write_text(written.read_text().replace(f"- {names[0]}\n", "- another\n"))
    description = {"name": "regseg_small", "options": {"rates": [[1, 2]], "width": 32}}
    torch.manual_seed(0)
    fresh = build_network(description, 6, "test")
    head = fresh.head.weight.clone()
    found = initialise(fresh, str(tmp_path / "first"), description, names)
    assert {"head.weight", "head.bias"} == set(found.missing)
    assert torch.equal(fresh.head.weight, head)
    # A finished run resumes without its initial weights being read again.
    (tmp_path / "first").rename(tmp_path / "moved")
    run(capsys, "retrain", "regseg_small", *wider, "--out", tmp_path / "second", *options, "--resume")
    assert "no run folder and no file" in capture_all(
        capsys, "retrain", "regseg_small", *wider, "--out", tmp_path / "third", *options, "--recipe", "fasterseg_demo"
    )
    for library in ("timm", "torchvision"):
        wrong = ["--init", library, "--out", tmp_path / library, "--recipe", "fasterseg_demo"]
        assert f"--init {library}: regseg_small has no weights of {library}" in fail(
            capsys, "retrain", "regseg_small", *wrong, *SMALL
        )


def test_recipes_are_listed_and_unknown_ones_named(tmp_path, capsys):
    printed = run(capsys, "retrain", "--recipe", "list")
    assert "regseg_v3_cityscapes" in printed
    assert "RegSeg v3, section 4.2" in printed
    message = fail(capsys, "retrain", "regseg", "--recipe", "regsegg", "--out", tmp_path / "x", *SMALL)
    assert "one of the recipes" in message


def test_auxiliary_heads_are_trained_and_left_out_of_inference(tmp_path, capsys):
    recipe = ["--recipe", "fasterseg_cityscapes", "--set", "workers=0", "--set", "precision=fp32"]
    run(capsys, "retrain", "fasterseg_student", "--network-set", "width=0.25", *recipe, "--out", tmp_path / "r", *SMALL)
    weights = RunFolder.open(tmp_path / "r").load_weights("best")
    assert {name.split(".")[1] for name in weights if name.startswith("auxiliary.")} == {"16", "32"}
    loaded = load_network(str(tmp_path / "r"))
    assert loaded.network.auxiliary is None
    assert loaded.network(torch.zeros(1, 3, 64, 64)).shape == (1, 6, 64, 64)
    other = ["--recipe", "fasterseg_cityscapes", "--set", "auxiliary_weights=[0.2]", "--out", tmp_path / "s", *SMALL]
    assert "no auxiliary heads" in capture_all(capsys, "retrain", "regseg_small", *other)


def capture_all(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_libraries_weights_are_reached_from_the_command_line(tmp_path, capsys, monkeypatch):
    """Nothing is downloaded: the library's function returns constant weights where it would load its own."""
    import timm

    create = timm.create_model

    def trained(name, pretrained=False, **options):
        network = create(name, pretrained=False, **options)
        if pretrained:
            for parameter in network.parameters():
                parameter.data.fill_(0.01)
        return network

    monkeypatch.setattr(timm, "create_model", trained)
    frozen = ["--set", "learning_rate=1.0e-12", "--set", "freeze_norms=true", "--init", "timm"]
    run(capsys, "retrain", "eseg_s", "--out", tmp_path / "e", *SMALL, *frozen)
    weights = RunFolder.open(tmp_path / "e").load_weights("best")
    assert weights["backbone.features.conv_stem.weight"].sub(0.01).abs().max() < 1e-6
    report = json.loads((tmp_path / "e" / "initial_weights.json").read_text())
    assert all(name.startswith("backbone.") for name in report["taken"])
    assert all(not name.startswith("backbone.") for name in report["missing"])


def test_torchvisions_weights_with_other_classes(tmp_path, capsys, monkeypatch):
    """Nothing is downloaded: the weights are those of a fresh network of torchvision with its own 21 classes."""
    import torchvision
    from torchvision.models import WeightsEnum

    name = "lraspp_mobilenet_v3_large"
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: theirs)
    frozen = ["--set", "learning_rate=1.0e-12", "--set", "freeze_norms=true", "--init", "torchvision"]
    run(capsys, "retrain", f"torchvision:{name}", "--out", tmp_path / "t", *SMALL, *frozen)
    weights = RunFolder.open(tmp_path / "t").load_weights("best")
    torch.testing.assert_close(weights["backbone.0.0.weight"], theirs["backbone.0.0.weight"])
    report = json.loads((tmp_path / "t" / "initial_weights.json").read_text())
    assert {key.split(".")[1] for key in report["reshaped"]} == {"low_classifier", "high_classifier"}


def test_options_reach_the_benchmark(capsys):
    options = ["--size", "64x96", "--seconds", "0.02", "--threads", "1", "--device", "cpu", "--json"]
    counts = [
        json.loads(run(capsys, "benchmark", "regseg_small", "--network-set", f"width={width}", *options))["parameters"]
        for width in (32, 64)
    ]
    assert counts[0] < counts[1]
    assert "only a network given by its name" in fail(
        capsys, "benchmark", "none.yaml", "--network-set", "width=32", *options
    )
