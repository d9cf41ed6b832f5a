"""The estimator of a network with choices: its additive model, and a search from supernet to derived network."""

import itertools
import json
import shutil
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from derive import TABLE, DeriveOptions, deriver_of
from derive.choices.candidates import CANDIDATES
from derive.choices.estimator import OptionModel
from derive.estimator import ESTIMATOR, read_fit
from derive.judging import JUDGED, Judge
from dnas.choices import ChoiceConv2d, ChoiceConvNorm, OperatorChoice, RateChoice, RepeatChoice, WidthChoice
from dnas.data import DataConfig, evenly_spaced, open_dataset
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.pricing import LatencyProgramme
from dnas.runs import RunFolder
from dnas.search.calibration import calibration_images, recalibrate_bn
from dnas.training.metrics import evaluate
from dnas.workflows.derivation import derive_network
from dnas.workflows.search import run_search
from search_spaces import registry, space_from
from search_spaces.choices import ChoiceSpace, fair_options
from tests.priced import priced_table

SPACE = {
    "space": "small",
    "task": {"input_size": [64, 64], "num_classes": 6},
    "search": {
        "method": "estimator",
        "epochs": 2,
        "batch_size": 2,
        "networks_per_step": 3,
        "held_out": 0.4,
        "judged_networks": 50,
        "judge_images": 2,
        "candidates": 4,
        "validate_every": 9,
        "validation_images": 1,
        "warm_up_steps": 0,
        "augmentation": {"crop": [64, 64]},
    },
}
DATA = DataConfig(dataset="rectangles", size=(64, 64), images={"train": 10, "val": 1}, cache=True)
TARGET_MS = 0.2


class Network(nn.Sequential):
    """Two widths, three operators, one of them with a dilation rate, and a depth."""

    def __init__(self, classes):
        widths = [WidthChoice((4, 8, 12), name=f"width_{number}") for number in range(2)]

        def block(number):
            rate = RateChoice(2.5, 1.5, name=f"rate_{number}")
            options = {
                "dilated": ChoiceConvNorm(widths[1], widths[1], 3, dilation=rate),
                "conv": ChoiceConvNorm(widths[1], widths[1], 3),
                "skip": nn.Identity(),
            }
            return OperatorChoice(options, name=f"operator_{number}")

        super().__init__(
            ChoiceConvNorm(3, widths[0], 3, 4),
            ChoiceConvNorm(widths[0], widths[1], 3),
            block(0),
            RepeatChoice([block(1), block(2)], 0, name="depth"),
            ChoiceConv2d(widths[1], classes, bias=True),
        )


class SmallSpace(ChoiceSpace):
    def network(self):
        return Network(self.num_classes)


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.SPACES, "small", SmallSpace)
        yield


def table_of(space):
    def price(spec):
        channels = sum(shape[0] for shape in spec.inputs) + spec.out_channels
        return 0.003 * channels * (1 + zlib.crc32(spec.key.encode()) % 97 / 97)

    return priced_table(space, price)


def searched(path, **options):
    space = space_from({**SPACE, "latency_target_ms": TARGET_MS}, "test")
    run_search(space, DATA, table_of(space), path, seed=2, device="cpu", **options)
    return RunFolder.open(path)


@pytest.fixture(scope="module")
def run(registered, tmp_path_factory):
    return searched(tmp_path_factory.mktemp("estimator") / "run")


def judged(run, kind):
    records = [json.loads(line) for line in (run.path / JUDGED).read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def test_the_best_judged_candidate_near_the_target_is_derived(run):
    candidates = judged(run, "candidate")
    assert 2 <= len(candidates) <= 4
    assert all(one["latency_ms"] == pytest.approx(TARGET_MS, rel=0.05) for one in candidates)
    before = (run.path / JUDGED).read_bytes()
    found = derive_network(run.path, DeriveOptions())
    assert found.supernet_miou == max(one["miou"] for one in judged(run, "candidate"))
    assert found.reached
    assert found.candidates == len(candidates)
    assert (run.path / JUDGED).read_bytes() == before


def test_the_candidates_are_found_once(run, tmp_path, monkeypatch):
    """In a large space that takes minutes. For another target they are found anew; a damaged file is named."""
    found = derive_network(run.path, DeriveOptions())
    with monkeypatch.context() as patch:
        patch.setattr(LatencyProgramme, "likeliest", lambda *_: pytest.fail("not needed"))
        again = derive_network(run.path, DeriveOptions())
        assert again.to_mapping() == found.to_mapping()
        assert again.architecture == found.architecture
        assert deriver_of(space_from(run.configuration["space"], "test")).search_summary(run)
        with pytest.raises(pytest.fail.Exception):
            derive_network(run.path, DeriveOptions(candidates=3))
    shutil.copytree(run.path, tmp_path / "damaged")
    (tmp_path / "damaged" / CANDIDATES).write_text('{"target_ms": 0.2, "wanted": 4, "proven": true, "options": []}')
    with pytest.raises(UserError, match=rf"{CANDIDATES}: options: "):
        derive_network(tmp_path / "damaged", DeriveOptions())
    changed = {**json.loads((run.path / CANDIDATES).read_text()), "options": [{"width_0": "5"}]}
    (tmp_path / "damaged" / CANDIDATES).write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"options\.width_0: given '5', expected one of 4, 8, 12"):
        derive_network(tmp_path / "damaged", DeriveOptions())


def test_a_judgement_is_the_miou_with_inherited_weights_on_held_out_images(run):
    deriver = deriver_of(space_from(run.configuration["space"], "test"))
    found = derive_network(run.path, DeriveOptions())
    judge = Judge.of_run(run, deriver, LatencyTable.load(run.path / TABLE))
    network = deriver.inherit(judge.problem, found.architecture)
    train = open_dataset(DATA, "train")
    settings = deriver.space.search
    kept, held_out = settings.parts(10, run.seed)
    images = calibration_images(train, settings.augmentation, 2, kept, torch.device("cpu"))
    recalibrate_bn(network, lambda batch: network(batch[0]), images)
    scored = [held_out[i] for i in evenly_spaced(len(held_out), 2)]
    assert found.supernet_miou == evaluate(network, train, settings.augmentation, indices=scored, batch_size=2).miou


def test_rates_are_trained_with_the_weights_and_all_judged_networks_have_the_rounded_ones(run):
    space = space_from(run.configuration["space"], "test")
    start = space.problem(table_of(space), run.seed).logits()
    logits = run.load_weights("architecture")
    rates = [f"network.{name}" for name, one in space.choices.items() if isinstance(one, RateChoice)]
    moved = [name for name in rates if not torch.equal(start[name], logits[name])]
    assert len(moved) > len(rates) / 2
    assert all(1 <= float(logits[name]) <= 2.5 for name in rates)
    epochs = run.records("epoch")
    assert epochs[0]["rates"] != epochs[-1]["rates"]
    assert {f"network.{name}": pytest.approx(rate) for name, rate in epochs[-1]["rates"].items()} == {
        name: float(logits[name]) for name in rates
    }


def test_the_random_networks_are_fitted_and_reported(run):
    assert read_fit(run).networks == 50
    assert json.loads((run.path / ESTIMATOR).read_text())["penalty"] > 0
    deriver = deriver_of(space_from(run.configuration["space"], "test"))
    assert "judged" in deriver.search_drawings(run)
    titles = [section.title for section in deriver.search_sections(run)]
    assert titles == ["Search", "Choices", "Judged networks"]


def test_an_interrupted_search_ends_the_same(run, tmp_path, monkeypatch):
    """It stops in the second epoch; the resumed one has the same weights, rates and judged networks."""
    from dnas.search.one_shot import OneShotSearch

    steps = []
    whole = OneShotSearch._step

    def interrupted(session, *args):
        steps.append(session)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return whole(session, *args)

    monkeypatch.setattr(OneShotSearch, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "run")
    monkeypatch.setattr(OneShotSearch, "_step", whole)
    again = searched(tmp_path / "run", resume=True)
    assert (again.path / JUDGED).read_bytes() == (run.path / JUDGED).read_bytes()
    one, other = (folder.load_weights("architecture") for folder in (run, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_additive_scores_are_recovered_and_the_likeliest_network_has_the_largest_sum():
    """All networks of a small space, scored by contributions and noise."""
    space = space_from({**SPACE, "search": {}}, "test")
    choices = {name: one for name, one in space.choices.items() if not isinstance(one, RateChoice)}
    model = OptionModel(choices)
    generator = np.random.default_rng(0)

    def labels(options):
        return {name: choices[name].labels[index] for name, index in options.items()}

    drawn = [labels(one) for one in fair_options(choices, 200, torch.Generator().manual_seed(0))]
    weights = generator.normal(size=len(model.features(drawn[0])))
    scores = [0.4 + 0.01 * model.features(one) @ weights + 1e-4 * generator.normal() for one in drawn]
    ridge = model.fit(drawn, scores)
    assert ridge.fit.tau > 0.97
    every = [
        labels(dict(zip(choices, one, strict=True)))
        for one in itertools.product(*(range(len(c.labels)) for c in choices.values()))
    ]
    sums = [model.features(one) @ weights for one in every]
    assert np.corrcoef([ridge.predict(model.features(one)) for one in every], sums)[0, 1] > 0.999
    likeliest = labels({name: int(logits.argmax()) for name, logits in model.logits(ridge).items()})
    assert likeliest == every[int(np.argmax([ridge.predict(model.features(one)) for one in every]))]


def test_every_option_is_drawn_equally_often_and_the_first_network_may_be_the_largest():
    space = space_from({**SPACE, "search": {**SPACE["search"], "largest_first": True}}, "test")
    problem = space.problem(table_of(space), 0)
    passes = problem.weight_passes("search", torch.Generator().manual_seed(0))
    for name, choice in problem.network.choices.items():
        if isinstance(choice, RateChoice):
            assert passes[0].sample.decisions[name].rate.requires_grad
            continue
        drawn = [one.sample.decisions[name].index for one in passes]
        if choice.ordered:
            assert drawn[0] == len(choice.labels) - 1
        else:
            assert sorted(drawn) == [0, 1, 2]
    assert not any(c.logits.requires_grad for c in problem.network.choices.values() if not isinstance(c, RateChoice))


def test_a_network_that_has_only_rates_is_refused(monkeypatch):
    class OnlyRates(ChoiceSpace):
        def network(self):
            return nn.Sequential(ChoiceConv2d(3, self.num_classes, 3, dilation=RateChoice(2.5, name="rate"), bias=True))

    monkeypatch.setitem(registry.SPACES, "rates", OnlyRates)
    space = space_from({**SPACE, "space": "rates"}, "test")
    with pytest.raises(UserError, match=r"test: search\.method: given estimator, .* only dilation rates; use gradient"):
        space.problem(table_of(space), 0)


def test_whether_a_target_can_be_met_is_known_without_the_slowest_network(monkeypatch):
    """In a large space that network takes minutes."""
    space = space_from(SPACE, "test")
    deriver, table = deriver_of(space), table_of(space)
    fastest, slowest = deriver.latency_bounds(table)["logits"]
    assert deriver.latency_bounds_for(table, slowest + 1)["logits"] == (fastest, slowest)
    target = (fastest + slowest) / 2
    monkeypatch.setattr(LatencyProgramme, "slowest", lambda self: pytest.fail("not needed"))
    low, high = deriver.latency_bounds_for(table, target)["logits"]
    assert low == fastest
    assert target <= high <= slowest
    assert deriver.latency_bounds_for(table, None)["logits"][0] == fastest


def test_an_unknown_method_or_a_setting_of_the_other_one_is_refused():
    with pytest.raises(UserError, match=r'search\.method: given "luck", expected gradient or estimator'):
        space_from({**SPACE, "search": {"method": "luck"}}, "test")
    with pytest.raises(UserError, match=r"search\.search_epochs: unknown key, known keys: epochs"):
        space_from({**SPACE, "search": {"method": "estimator", "search_epochs": 3}}, "test")
    with pytest.raises(UserError, match=r"search\.judged_networks: unknown key, known keys: pretrain_epochs"):
        space_from({**SPACE, "search": {"judged_networks": 60}}, "test")
