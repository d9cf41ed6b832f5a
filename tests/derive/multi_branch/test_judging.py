"""Networks judged by the weights of a search: an estimator search from its supernet to the derived student."""

import dataclasses
import json
import shutil

import pytest
import scipy.stats
import torch

from derive import TABLE, DeriveOptions, Judge, deriver_of
from derive.estimator import ESTIMATOR
from derive.judging import JUDGED, searched_problem
from derive.multi_branch.perturbation import GRADIENT
from dnas.cli import main
from dnas.config import to_mapping
from dnas.data import DataConfig, evenly_spaced, open_dataset, split_parts
from dnas.errors import UserError
from dnas.files import read_json
from dnas.json_lines import read_lines
from dnas.latency import LatencyTable
from dnas.progress import NoProgress
from dnas.runs import RunFolder
from dnas.search import Pass
from dnas.search.calibration import calibration_images, recalibrate_bn
from dnas.search.scoring import ScoredImages
from dnas.training import retrain
from dnas.training.metrics import evaluate
from dnas.workflows.derivation import derive_network
from dnas.workflows.networks import inherited_network
from dnas.workflows.ranking import Correlation, correlation, rank_networks, read_ground_truth, rows_of_search
from dnas.workflows.report import gather_report
from dnas.workflows.search import run_search
from search_spaces import load_space, space_from
from tests.priced import by_width, priced_table

SPACE = {
    "space": "fasterseg",
    "task": {"input_size": [64, 64], "num_classes": 6},
    "branch_selection": {"reference_ms": 1.0},
    "network": {"layers": 4, "ratios": [1, 2], "branches": 2, "student_ratio": 1, "teacher_ratio": 2},
    "search": {
        "method": "estimator",
        "epochs": 2,
        "batch_size": 2,
        "held_out": 0.4,
        "judged_networks": 50,
        "judge_images": 3,
        "candidates": 6,
        "validate_every": 9,
        "validation_images": 1,
        "augmentation": {"crop": [64, 64]},
    },
}
DATA = DataConfig(dataset="rectangles", size=(64, 64), images={"train": 10, "val": 1}, cache=True)
TARGET_MS = 2.0


def searched(path, **options):
    space = space_from({**SPACE, "latency_target_ms": TARGET_MS}, "test")
    run_search(space, DATA, priced_table(space, by_width), path, seed=2, device="cpu", **options)
    return RunFolder.open(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("estimator") / "run")


def judged(run):
    return [line.record for line in read_lines(run.path / JUDGED, "judged networks")]


def test_the_derived_student_is_the_best_judged_candidate(run):
    candidates = [record for record in judged(run) if record["kind"] == "candidate"]
    assert 3 <= len(candidates) <= 6
    assert len({tuple(record["branches"]) for record in candidates}) == 3
    assert all(record["latency_ms"] == pytest.approx(TARGET_MS, rel=0.05) for record in candidates)
    before = (run.path / JUDGED).read_bytes()
    derivation = derive_network(run.path, DeriveOptions())
    assert derivation.chosen.miou == max(record["miou"] for record in candidates)
    assert derivation.latency_ms == pytest.approx(TARGET_MS, rel=0.05)
    assert float(derivation.architecture.provenance["supernet_miou"]) == pytest.approx(derivation.chosen.miou, abs=1e-6)
    assert (run.path / JUDGED).read_bytes() == before
    selection = read_json(run.path / "selection.json", "selection")
    assert selection["student"]["latency_ms"] == derivation.latency_ms


def test_a_judgement_is_the_miou_with_inherited_weights_on_held_out_images(run):
    deriver = deriver_of(space_from(run.configuration["space"], "test"))
    derivation = derive_network(run.path, DeriveOptions())
    judge = Judge.of_run(run, deriver, LatencyTable.load(run.path / TABLE))
    network = deriver.inherit(judge.problem, derivation.architecture)
    train = open_dataset(DATA, "train")
    augmentation = deriver.space.search.augmentation
    kept, held_out = split_parts(10, run.seed, 0.4)
    batches = calibration_images(train, augmentation, 2, kept, torch.device("cpu"))
    recalibrate_bn(network, lambda batch: network(batch[0]), batches)
    images = [held_out[i] for i in evenly_spaced(4, 3)]
    assert derivation.chosen.miou == evaluate(network, train, augmentation, indices=images, batch_size=2).miou


def test_the_random_networks_are_fitted(run):
    fit = read_json(run.path / ESTIMATOR, "fit")
    assert fit["networks"] == 50
    assert [record["index"] for record in judged(run) if record["kind"] == "random"] == sorted(
        {record["index"] for record in judged(run) if record["kind"] == "random"}
    )
    tables = run.load_weights("architecture")
    assert {name.split(".")[0] for name in tables} == {"student", "teacher"}
    assert not any(name.startswith("teacher.gamma") for name in tables)
    teacher = derive_network(run.path, DeriveOptions(which="teacher")).architecture
    assert teacher.end_ratio == 2


def test_other_targets_are_judged_by_the_weights_in_the_run_folder(run):
    before = (run.path / JUDGED).read_bytes()
    derivation = derive_network(run.path, DeriveOptions(target_ms=3.0))
    assert derivation.latency_ms == pytest.approx(3.0, rel=0.05)
    assert derivation.chosen.candidates == 2
    assert derivation.chosen.miou is not None
    assert (run.path / JUDGED).read_bytes() == before  # the folder of a finished search is only read
    alone = derive_network(run.path, DeriveOptions(target_ms=3.0, candidates=1))
    assert all(
        likeliest.lost_log_probability <= best.lost_log_probability
        for likeliest, best in zip(alone.scores, derivation.scores, strict=True)
    )


def test_perturbation_keeps_the_operator_whose_removal_hurts_most(tmp_path):
    """Every entry of alpha is minus the mIoU without its operator, every entry of gamma that with its ratio."""
    search = {
        "method": "perturbation",
        "pretrain_epochs": 1,
        "search_epochs": 1,
        "batch_size": 2,
        "learning_rate": 0.05,
        "validate_every": 9,
        "candidates": 3,
        "judge_images": 2,
        "augmentation": {"crop": [64, 64]},
    }
    space = space_from({**SPACE, "network": {**SPACE["network"], "layers": 3}, "search": search}, "test")
    path = tmp_path / "run"
    run_search(space, DATA, priced_table(space, by_width), path, seed=2, device="cpu")
    run = RunFolder.open(path)
    deriver = deriver_of(space)
    judge = Judge.of_run(run, deriver, LatencyTable.load(path / TABLE))
    problem = judge.problem
    problem.architecture.load_state_dict(run.load_state()["architecture"])
    sample = problem.validation_passes()["student"].sample
    kept, second = space.search.parts(10, run.seed)
    train = open_dataset(DATA, "train")

    def miou(changed):
        def outputs(images):
            return problem.outputs(images, Pass("student", changed))

        with torch.no_grad():
            batches = calibration_images(train, space.search.augmentation, 2, kept, torch.device("cpu"))
            recalibrate_bn(problem.weights, lambda batch: outputs(batch[0]), batches)
        images = [second[i] for i in evenly_spaced(len(second), 2)]
        scored = ScoredImages(train, space.search.augmentation, images, torch.device("cpu"), batch_size=2)
        found = scored.miou(outputs)
        return sum(found.values()) / len(found)

    scores = {record["network"]: record["miou"] for record in judged(run) if record["kind"] == "perturbation"}
    tables = run.load_weights("architecture")
    gradient = run.load_weights(GRADIENT)
    assert len(scores) == sum(
        table.numel() for name, table in gradient.items() if name.startswith(("student.alpha", "student.gamma"))
    )
    alpha = sample.alpha[1].clone()
    alpha[0, 2] = 0
    alpha[0] /= alpha[0].sum()
    assert scores["student.alpha_16 0 2"] == miou(
        dataclasses.replace(sample, alpha=(sample.alpha[0], alpha, *sample.alpha[2:]))
    )
    choice = ((1, sample.choice[0][1]), *sample.choice[1:])
    assert scores["student.gamma_8 0 1"] == miou(dataclasses.replace(sample, choice=choice))
    without = torch.tensor([scores[f"student.alpha_16 0 {column}"] for column in range(5)])
    order = tables["student.alpha_16"][0].argsort(stable=True, descending=True)
    assert without[order].tolist() == sorted(without.tolist())
    for name, table in gradient.items():
        replaced = name.startswith(("student.alpha", "student.gamma"))
        assert torch.equal(tables[name], table) != replaced
    run_search(space, DATA, priced_table(space, by_width), path, seed=2, device="cpu", resume=True)
    assert all(torch.equal(tables[name], table) for name, table in run.load_weights("architecture").items())
    assert all(torch.equal(gradient[name], table) for name, table in run.load_weights(GRADIENT).items())


def ground_truth(run, path, count=24):
    """Random networks with mIoUs that have nothing to do with them, some with two seeds."""
    space = space_from(run.configuration["space"], "test")
    deriver, table = deriver_of(space), priced_table(space, by_width)
    rows = []
    for number, architecture in enumerate(deriver.random_architectures(count, seed=1)):
        row = {"space": "test", "network": str(number), "architecture": to_mapping(architecture)}
        row |= {"predicted_ms": deriver.predict_ms(architecture, table), "val_miou": 0.01 * (7 * number % count)}
        rows.append({**row, "seed": 0})
        if number < 3:
            rows.append({**row, "seed": 1, "val_miou": 0.9})
    rows.append({**rows[0], "space": "another", "network": "another"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_a_search_ranks_networks_of_known_miou(run, tmp_path):
    ground_truth(run, tmp_path / "rows.jsonl")
    known = read_ground_truth(tmp_path / "rows.jsonl")
    assert len(known) == 25
    assert known[1]["val_miou"] == pytest.approx((0.07 + 0.9) / 2)
    found = rank_networks(run.path, known, device="cpu")
    assert [ms for ms, _, _ in found.points] == [row["predicted_ms"] for row in known[:-1]]
    _, inherited, alone = zip(*found.points, strict=True)
    assert found.overall == Correlation(
        24, scipy.stats.kendalltau(inherited, alone).statistic, scipy.stats.spearmanr(inherited, alone).statistic
    )
    for middle, band in found.bands.items():
        within = [point for point in found.points if abs(point[0] / middle - 1) <= 0.1]
        assert band == correlation(within)
    page = tmp_path / "page.html"
    command = ["report", "--search", str(run.path), "--out", str(page), "--networks", "0"]
    assert main([*command, "--ground-truth", str(tmp_path / "rows.jsonl")]) == 0
    text = page.read_text()
    for words in ("Kendall", "Networks judged in the supernet", "entropy", f"{found.overall.tau:.2f}"):
        assert words in text


def test_a_ground_truth_that_is_none_is_refused(run, tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UserError, match=r"rows\.jsonl: no such file"):
        read_ground_truth(path)
    path.write_text('{"val_miou": 0.5}\n')
    with pytest.raises(UserError, match="line 1: expected a JSON object with the keys architecture, predicted_ms"):
        read_ground_truth(path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no networks"):
        read_ground_truth(path)
    rows = ground_truth(run, path, count=2)
    others = [{**row, "space": f"another {number % 2}"} for number, row in enumerate(rows)]
    with pytest.raises(
        UserError,
        match=r"0 networks of the space test, .* another 0, another 1$",
    ):
        rank_networks(run.path, others)
    assert main(["report", "--student", "x", "--out", "x.html", "--ground-truth", str(path)]) == 2


def test_a_ground_truth_fits_by_its_networks_and_not_by_the_name_of_the_space(run, tmp_path):
    rows = ground_truth(run, tmp_path / "rows.jsonl", count=2)
    renamed = [{**row, "space": "fasterseg_demo"} for row in rows]
    with pytest.raises(UserError, match=r"0 networks of the space test, .* of fasterseg_demo$"):
        rows_of_search(renamed, run)
    unnamed = [{key: value for key, value in row.items() if key != "space"} for row in rows]
    assert rows_of_search(unnamed, run) == unnamed
    for name, overrides, fits in (
        ("mine.yaml", ["search.judged_networks=60"], True),
        ("fasterseg_demo", ["network.layers=7"], False),
    ):
        space = load_space("fasterseg_demo", overrides).configuration()
        configuration = {**run.configuration, "preset": name, "space": space}
        with RunFolder.create(tmp_path / name, "search", configuration, 0) as searched:
            if fits:
                assert rows_of_search([*rows, *renamed], searched) == renamed
            else:
                with pytest.raises(UserError, match=r"it has networks of test, another, fasterseg_demo$"):
                    rows_of_search([*rows, *renamed], searched)


def test_a_report_on_another_machine_than_the_tables_is_written_without_measuring(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    table = LatencyTable.load(run.path / TABLE)
    away = dataclasses.replace(table.provenance.device, name="Another CPU")
    runtime = {"backend": "tensorrt", "device": dataclasses.replace(away, type="cuda")}
    for changes, reason in (({"device": away}, "Another CPU"), (runtime, "cuda")):
        provenance = dataclasses.replace(table.provenance, **changes)
        dataclasses.replace(table, provenance=provenance).save(tmp_path / "run" / TABLE)
        found = gather_report(tmp_path / "run", None, None, networks=4)
        assert found.agreement is None
        assert found.latency is not None
        assert reason in found.latency.details["not checked here"]
        with pytest.raises(UserError, match=rf"table\.json is not of this machine: .*{reason}.*; leave --measure out"):
            derive_network(tmp_path / "run", DeriveOptions(), measure=True)
    assert gather_report(run.path, None, None, networks=4).agreement is not None


def test_a_retraining_begins_with_the_weights_of_the_search(run, tmp_path, monkeypatch):
    """Its first loss is that of the inherited network; on resuming, the checkpoint counts."""
    derivation = derive_network(run.path, DeriveOptions())
    derivation.architecture.save(tmp_path / "a.yaml")
    inherited = inherited_network(derivation.architecture, run.path)
    deriver = deriver_of(space_from(run.configuration["space"], "test"))
    problem = searched_problem(run, deriver, LatencyTable.load(run.path / TABLE))
    expected = deriver.inherit(problem, derivation.architecture).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in inherited.state_dict().items())
    begun = []

    def watched(network, *arguments, **options):
        begun.append({name: value.clone() for name, value in network.state_dict().items()})
        return retrain(network, *arguments, **options)

    monkeypatch.setattr("dnas.workflows.retraining.retrain", watched)
    command = ["retrain", str(tmp_path / "a.yaml"), "--data", "rectangles", "--data-set", "size=[64,64]"]
    command += ["--data-set", "images={train: 4, val: 1}", "--set", "epochs=1", "--set", "batch_size=2"]
    command += ["--set", "augmentation.crop=[64,64]", "--device", "cpu"]
    assert main([*command, "--inherit", "--out", str(tmp_path / "inherited")]) == 0
    assert all(torch.equal(value, expected[name]) for name, value in begun[0].items())
    assert RunFolder.open(tmp_path / "inherited").configuration["inherit"] == str(run.path.resolve())
    assert main([*command, "--out", str(tmp_path / "scratch")]) == 0
    assert RunFolder.open(tmp_path / "scratch").configuration["inherit"] is None
    assert not all(torch.equal(value, expected[name]) for name, value in begun[1].items())
    assert main([*command, "--inherit", "--search", str(tmp_path), "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


class Stops(NoProgress):
    """Raises after some judged networks."""

    def __init__(self, after):
        self.after, self.judging = after, False

    def begin(self, description, total):
        self.judging = description.startswith("judging")

    def advance(self, steps=1, **figures):
        self.after -= self.judging
        if self.after == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 52])
def test_judging_continues_where_it_stopped(run, tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "run", progress=Stops(after))
    path = tmp_path / "run" / JUDGED
    with path.open("ab") as stream:
        stream.write(b'{"network": "half')  # killed while it wrote
    if after < 50:
        with pytest.raises(UserError, match="continue it with dnas search --resume"):
            derive_network(tmp_path / "run", DeriveOptions())
    searched(tmp_path / "run", resume=True)
    assert path.read_bytes() == (run.path / JUDGED).read_bytes()
    expected, found = (one.load_weights("architecture") for one in (run, RunFolder.open(tmp_path / "run")))
    assert all(torch.equal(found[name], table) for name, table in expected.items())
    first, second = (derive_network(folder, DeriveOptions()) for folder in (run.path, tmp_path / "run"))
    assert first.latency_ms == second.latency_ms


def test_inherited_networks_are_plain_ones(run):
    """Of a double convolution whose output is read in part, the supernet has more inner channels."""
    deriver = deriver_of(space_from(run.configuration["space"], "test"))
    problem = searched_problem(run, deriver, LatencyTable.load(run.path / TABLE))
    wider = []
    for architecture in deriver.random_architectures(30, seed=0):
        searched = deriver.inherit(problem, architecture).state_dict()
        plain = architecture.build(deriver.space.num_classes).state_dict()
        if any(searched[name].shape != value.shape for name, value in plain.items()):
            wider.append(architecture)
            inherited = inherited_network(architecture, run.path).state_dict()
            assert {name: value.shape for name, value in inherited.items()} == {n: v.shape for n, v in plain.items()}
            for name, value in inherited.items():
                assert torch.equal(value, searched[name][tuple(map(slice, value.shape))])
    assert wider
