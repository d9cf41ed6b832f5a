"""The report on a study: what it gathers, the Pareto front, and the page in a browser."""

import itertools
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.cli import main
from dnas.config import parse_config, to_mapping
from dnas.errors import UserError
from dnas.files import dump_yaml, parse_yaml, write_text
from dnas.report.pareto import hypervolume, pareto_front
from dnas.runs import RunFolder
from dnas.workflows.comparison import gather_comparison
from dnas.workflows.study.config import StudyConfig
from dnas.workflows.study.graph import plan
from dnas.workflows.study.job import prepare
from dnas.workflows.study.status import STUDY_FILE

TEXT = """
vary: {kind: {plain: 1, fast: 2}, target: [2.0, 3.0, 5.0], seed: [0, 1]}
jobs:
  search: {command: search x, options: {set: {a: $kind, b: $target}, seed: $seed}}
  architecture: {command: derive $search}
  teacher: {command: retrain $architecture, options: {seed: $seed}}
  student: {command: retrain $architecture, options: {teacher: $teacher}, cores: 2}
  speed: {command: benchmark $student}
  score: {command: evaluate $student}
"""


def miou_of(values, epoch=2):
    """A mIoU that grows with target and epochs, with a spread of 0.02 over seeds."""
    return round(
        0.2 + 0.1 * float(values["target"]) * (epoch + 1) / 3 + 0.02 * int(values["seed"])
        - 0.1 * (values["kind"] == "fast"), 6
    )  # fmt: skip


def latency_of(values):
    return float(values["target"]) / (2 if values["kind"] == "fast" else 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study, written without running anything."""
    folder = tmp_path_factory.mktemp("studies") / "curve"
    config = parse_config(StudyConfig, parse_yaml(TEXT, "study"), "study")
    write_text(folder / STUDY_FILE, dump_yaml(to_mapping(config)))
    for job in plan(config):
        place = prepare(job, folder)
        records = [{"started": 0.0}, {"ended": 1.0, "seconds": 36.0, "status": 0}]
        write_text(place / "attempts.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        write_text(place / "done.json", "{}")
        if job.command in ("search", "retrain"):
            write_run(place, job)
        printed = {"speed": {"latency_ms": {"median": latency_of(job.values)}}, "score": {"miou": miou_of(job.values)}}
        write_text(place / "result.json", json.dumps(printed.get(job.kind, {})))
    return folder


@pytest.fixture(scope="module")
def whole(study):
    return gather_comparison([study])


def write_run(place, job):
    settings = {"network": {"architecture": {"x": job.name}}, "space": {"kind": job.values["kind"], "layers": 6}}
    with RunFolder.create(place, job.command, settings, int(job.values["seed"]), device="cpu") as run:
        for epoch in range(3):
            miou = miou_of(job.values, epoch)
            run.log({"kind": "step", "epoch": epoch, "seconds": 1.0})
            run.log({"kind": "epoch", "epoch": epoch, "miou": {"student": miou} if job.kind == "search" else miou})


def table_of(data, title):
    section = next(section for section in data.extra if section.title == title)
    table = next(block for block in section.blocks if hasattr(block, "rows"))
    return [[getattr(cell, "text", cell) for cell in row] for row in table.rows], table


def test_seeds_are_summarised_and_teachers_left_out(whole):
    rows, _ = table_of(whole, "Seeds")
    assert len(rows) == 6
    assert ["kind plain, target 2.0", "all", "2", "41.0 ± 1.4", "2.00 ± 0.00", "measured"] in rows


def test_a_front_for_each_value_with_its_hypervolume(study, whole):
    data = gather_comparison([study], by="kind")
    rows, _ = table_of(data, "Pareto front")
    # The reference is 1.1 times 5 ms; every faster network dominates up to the next one.
    plain = ((3 - 2) * 0.41 + (5 - 3) * 0.51 + (5.5 - 5) * 0.71) / 5.5
    fast = ((1.5 - 1) * 0.31 + (2.5 - 1.5) * 0.41 + (5.5 - 2.5) * 0.61) / 5.5
    assert {row[0]: float(row[2]) for row in rows} == pytest.approx({"plain": plain, "fast": fast}, abs=1e-4)
    together, _ = table_of(whole, "Pareto front")
    assert together[0][3] == "; ".join(
        f"kind {kind}, target {target}"
        for kind, target in (("fast", 2.0), ("fast", 3.0), ("fast", 5.0), ("plain", 5.0))
    )
    with pytest.raises(UserError, match=r"--by size: .* varies kind, target, seed"):
        gather_comparison([study], by="size")


def test_differing_keys_are_shown_and_the_unusual_value_is_marked(whole, tmp_path):
    for name, layers in (("a", 4), ("b", 4), ("c", 8)):
        with RunFolder.create(tmp_path / name, "search", {"space": {"layers": layers, "same": 1}}, 0) as run:
            run.log({"kind": "epoch", "epoch": 0, "miou": {"student": 0.5}})
    rows, table = table_of(gather_comparison([tmp_path / name for name in "abc"]), "Configuration")
    assert (list(table.header), rows) == (["key", "a", "b", "c"], [["space.layers", "4", "4", "8"]])
    assert [type(cell).__name__ for cell in table.rows[0]] == ["str", "str", "str", "Marked"]
    rows, _ = table_of(whole, "Configuration")
    assert [row[0] for row in rows] == ["search: space.kind", "teacher: space.kind", "student: space.kind"]


def test_the_cost_counts_cores(whole):
    rows, _ = table_of(whole, "Cost")
    hours = {row[0]: float(row[3]) for row in rows}
    assert hours == pytest.approx({**dict.fromkeys(("search", "architecture", "teacher", "speed", "score"), 0.12),
                                   "student": 0.24, "all": 0.84})  # fmt: skip


def test_networks_without_measured_latencies_do_not_mix_with_measured_ones(study, whole):
    assert whole.extra[0].lead == "mIoU against measured latency."
    shutil.copytree(study, study.parent / "unmeasured", dirs_exist_ok=True)
    for path in (study.parent / "unmeasured").glob("jobs/speed-kind=fast*"):
        shutil.rmtree(path)
    table, _ = table_of(gather_comparison([study.parent / "unmeasured"]), "Pareto front")
    assert table[0][1] == "3"


POINTS = st.lists(st.tuples(st.floats(0.1, 9.9), st.floats(0, 1)), min_size=1, max_size=8)


@given(POINTS)
def test_no_point_dominates_one_on_the_front_and_all_others_are_dominated(points):
    front = pareto_front(points)
    for one, other in itertools.permutations(front, 2):
        assert not (one[0] <= other[0] and one[1] >= other[1])
    for point in points:
        assert any(best[0] <= point[0] and best[1] >= point[1] for best in front)


@given(POINTS)
def test_the_hypervolume_is_the_area_under_the_best_network_at_each_latency(points):
    """Against a sum over the intervals between all latencies."""
    edges = sorted({0.0, 10.0, *(latency for latency, _ in points)})
    area = sum(
        (high - low) * max((miou for latency, miou in points if latency <= low), default=0.0)
        for low, high in itertools.pairwise(edges)
    )
    assert hypervolume(points, 10.0) == pytest.approx(area / 10.0)


def test_the_command_writes_the_page_into_the_folder(study, tmp_path, capsys):
    assert main(["report", str(study), "--by", "kind"]) == 0
    page = (study / "report.html").read_text()
    for title in ("Pareto front", "Seeds", "Curves", "Configuration", "Cost"):
        assert f"<h2>{title}</h2>" in page
    assert main(["report", str(study), str(study)]) == 2
    assert "several folders need --out" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_the_page_in_a_browser(study):
    """No console message, no request to the outside, nothing wider than the page, text of a readable size."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    if not (study / "report.html").exists():
        assert main(["report", str(study), "--by", "kind"]) == 0
    address = (study / "report.html").as_uri()
    messages, requests = [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        for width in (400, 1400):
            page.set_viewport_size({"width": width, "height": 900})
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
            sizes = page.evaluate(
                "[...document.querySelectorAll('h2, p, td, th, figcaption')]"
                ".map(element => parseFloat(getComputedStyle(element).fontSize))"
            )
            assert min(sizes) >= 12
            # Wide drawings scroll instead of becoming illegible.
            assert min(page.evaluate("[...document.querySelectorAll('svg')].map(one => one.clientWidth)")) >= 300
        titles = page.locator("section h2").all_inner_texts()
        browser.close()
    assert messages == []
    assert requests == [address]
    assert titles == ["Pareto front", "Seeds", "Curves", "Configuration", "Cost"]
