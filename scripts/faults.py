"""Damaged and hostile files: every reader returns, or raises one clear error, within two seconds.

``python -m scripts.faults --mutations 10000`` damages one good file of each kind that dnas reads in that many ways and
prints a table of tries and failures; a failure is any exception but ``UserError``, or a reader that takes longer than
two seconds of CPU time. ``--kind NAME`` restricts it to one kind. ``tests/test_faults.py`` does the same with fewer
mutations, and ``scripts/faults_guided.py`` is guided by coverage.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from derive import Architecture, deriver_of
from derive.choices.candidates import CANDIDATES, saved_candidates
from derive.estimator import read_fit
from derive.judging import judged_records
from derive.multi_branch.published_files import PublishedLogits
from derive.multi_branch.selections import read_selections
from dnas.data import load_data_config
from dnas.data.decode import read_image, read_mask
from dnas.data.discovery.exports import find_annotations
from dnas.data.discovery.polygons import draw_mask
from dnas.data.disk_cache import DiskCache
from dnas.data.labels import read_classes
from dnas.errors import UserError
from dnas.export import benchmark, export_onnx, export_torch
from dnas.export.torch_file import read_program
from dnas.files import write_json
from dnas.latency import LatencyTable
from dnas.latency.journal import Journal
from dnas.latency.published_pickle import read_pickled_dict
from dnas.latency.table_file import checksum
from dnas.report import search_section
from dnas.report.curves import epoch_series, step_series
from dnas.runs import RunFolder
from dnas.runs.checkpoint import load_state, load_weights, save_state, save_weights
from dnas.workflows.derivation import deriver_of_run
from dnas.workflows.networks import load_network
from latency_tables import table_file, table_names
from search_spaces import load_space

LIMIT_S = 2.0
HOSTILE: list[Any] = [
    None, True, -1, 0, 1e308, -1e308, 10**30, 10**400, float("nan"), float("inf"), "", "x", "../../x",
    "\x1b[31mx",
    "\ud800", "9" * 6000, [], {},
    [[]], [None] * 50, {"": {}}, [1, "a"], "'", 0.5, 2**63, -(2**31), "1e400", [[[[[[[[]]]]]]]],
]  # fmt: skip


@dataclass
class Kind:
    """A kind of file: a good example, its reader, and how a damaged structure becomes a file again."""

    name: str
    path: Path
    read: Callable[[], object]
    parse: Callable[[bytes], Any] | None = None
    render: Callable[[Any], bytes] | None = None
    good: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        self.good = self.path.read_bytes()


@dataclass
class Outcome:
    """How often a reader was tried, and its failures."""

    tries: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)


def mutations(kind: Kind, count: int, seed: int) -> Iterator[bytes]:
    """``count`` damaged contents: half of them by bytes, half by values if the file has a structure."""
    for number in range(count):
        chance = random.Random(f"{seed}/{kind.name}/{number}")
        if kind.parse is not None and kind.render is not None and number % 2:
            value = kind.parse(kind.good)
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                _damage_value(value, chance)
            try:
                yield kind.render(value)
            except (ValueError, TypeError, yaml.YAMLError):
                yield b""
        else:
            yield _damaged_bytes(kind.good, chance)


def _damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        start = chance.randrange(len(data) + 1)
        what = chance.randrange(6)
        if what == 0:
            del data[start:]
        elif what == 1:
            del data[start : start + chance.randrange(1, 20)]
        elif what == 2:
            data[start:start] = chance.randbytes(chance.randrange(1, 9))
        elif what == 3 and data:
            other = chance.randrange(len(data))
            data[start:start] = data[other : other + chance.randrange(1, 60)]
        elif what == 4 and start < len(data):
            data[start] = chance.choice((0, 255, 0x80, 0x22, 0x2D, 0x39, 0x5B, 0x7B))
        elif start < len(data):
            data[start] ^= 1 << chance.randrange(8)
    return bytes(data)


def _damage_value(value: Any, chance: random.Random) -> None:
    places = list(_places(value))
    if not places:
        return
    holder, key = chance.choice(places)
    what = chance.randrange(4)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[str(chance.choice(HOSTILE))[:40]] = copy.deepcopy(holder[key])
    elif what == 1:
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(chance.choice(HOSTILE))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def attempt(kind: Kind, content: bytes, outcome: Outcome) -> None:
    """Read one damaged file and record what happened."""
    kind.path.write_bytes(content)
    outcome.tries += 1
    started = time.process_time()
    try:
        kind.read()
    except UserError as error:
        outcome.refused += 1
        if "\n" in str(error) or "\x1b" in str(error):
            outcome.failures.append(f"message of several lines or with control characters: {error!r}")
    except Exception as error:
        outcome.failures.append(f"{type(error).__name__}: {str(error)[:200]}")
    finally:
        kind.path.write_bytes(kind.good)
    if time.process_time() - started > LIMIT_S:
        outcome.failures.append(f"took {time.process_time() - started:.1f} s")


def run(kind: Kind, count: int, seed: int) -> Outcome:
    """Try ``count`` damaged files of a kind."""
    kind.read()  # the good file is accepted
    outcome = Outcome()
    for content in mutations(kind, count, seed):
        attempt(kind, content, outcome)
    return outcome


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value).encode("utf-8", "surrogatepass")


def _lines(content: bytes) -> Any:
    return [json.loads(line) for line in content.splitlines()]


def _from_lines(values: Any) -> bytes:
    return b"".join(_json(value) + b"\n" for value in values)


def _table(value: Any) -> bytes:
    """A table whose checksum is right, so that its reader looks at the damage."""
    value["checksum"] = checksum({name: value.get(name) for name in ("provenance", "entries")})
    return _json(value)


def _journal(values: Any) -> bytes:
    for value in values:
        if isinstance(value, dict) and isinstance(value.get("record"), dict):
            text = json.dumps(value["record"], allow_nan=False, separators=(",", ":"))
            value["crc"] = zlib.crc32(text.encode())
    return _from_lines(values)


SPACE = """
space: fasterseg
task: {input_size: [64, 64], num_classes: 2}
network: {layers: 4, ratios: [2, 4], branches: 1, student_ratio: 2, teacher_ratio: 4}
search: {pretrain_epochs: 1, search_epochs: 1, batch_size: 2}
"""
RATES = """
space: regseg
task: {input_size: [64, 64], num_classes: 2}
network: {name: regseg_small, options: {rates: [[1, 2], [1, 2]], width: 32}}
rates: {upper: 4, allow_gaps: true}
"""


def kinds(folder: Path) -> dict[str, Kind]:
    """One good file of every kind, in ``folder``."""
    found = [*_plain_files(folder), *_tensor_files(folder), *_run_files(folder / "runs")]
    return {kind.name: kind for kind in found}


def _plain_files(folder: Path) -> Iterator[Kind]:
    (folder / "space.yaml").write_text(SPACE)
    (folder / "rates.yaml").write_text(RATES)
    (folder / "data.yaml").write_text("dataset: folder\nroot: images\nsize: [64, 64]\nseed: 3\n")
    (folder / "classes.yaml").write_text(
        "classes:\n- {name: road, colour: [1, 2, 3]}\n- {name: sky, colour: [4, 5, 6]}\nignore: 9\n"
    )
    for name, read in (
        ("space.yaml", lambda: load_space(str(folder / "space.yaml"))),
        ("rates.yaml", lambda: load_space(str(folder / "rates.yaml"))),
        ("data.yaml", lambda: load_data_config(str(folder / "data.yaml"))),
        ("classes.yaml", lambda: read_classes(folder / "classes.yaml")),
    ):
        yield Kind(name, folder / name, read, yaml.safe_load, _yaml)
    for space in ("space", "rates"):
        path = folder / f"{space}_architecture.yaml"
        deriver_of(load_space(str(folder / f"{space}.yaml"))).draw(1, 0)[0].save(path)
        yield Kind(path.name, path, lambda path=path: Architecture.load(path), yaml.safe_load, _yaml)
    with table_file(table_names()[0]) as bundled:
        table = json.loads(bundled.read_text())
    table["entries"] = dict(list(table["entries"].items())[:10])
    (folder / "table.json").write_bytes(_table(table))
    yield Kind("table.json", folder / "table.json", lambda: _used_table(folder / "table.json"), json.loads, _table)
    loaded = LatencyTable.load(folder / "table.json")
    journal = Journal(folder / "journal.jsonl")
    journal.begin(loaded.provenance)
    with (folder / "journal.jsonl").open("ab") as stream:
        entry = {"samples_ms": [1.0, 2.0], "calls_per_sample": 3, "throttled": False}
        stream.write(_journal([{"record": {"key": "conv", "round": entry, "seconds": 0.5}}]))
    yield Kind(
        "journal.jsonl", folder / "journal.jsonl", lambda: Journal(folder / "journal.jsonl").holder, _lines, _journal
    )
    values = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    np.save(folder / "image.npy", values)
    yield Kind(
        "image.npy", folder / "image.npy", lambda: (read_image(folder / "image.npy"), _mask(folder / "image.npy"))
    )
    yield _coco(folder / "coco", values)
    yield _cached(folder / "cached.pixels", values)
    for suffix in ("png", "jpg", "bmp", "tiff", "webp"):
        path = folder / f"image.{suffix}"
        Image.fromarray(values).save(path)
        yield Kind(path.name, path, lambda path=path: (read_image(path), _mask(path)))


def _coco(folder: Path, pixels: Any) -> Kind:
    """An export of polygons, run lengths as numbers, and as compressed text."""
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "0.png")
    height, width = pixels.shape[:2]
    forms: list[Any] = [[[1, 1, 9, 1, 9, 8]], *({"size": [24, 32], "counts": runs} for runs in ([5, 763], "5kg0"))]
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": n, "image_id": 0, "category_id": 1, "segmentation": one} for n, one in enumerate(forms)],
    }
    (folder / "instances.json").write_bytes(_json(content))

    def read() -> None:
        found = find_annotations(folder)
        for image in () if found is None else found.images:
            draw_mask(image, dict.fromkeys(found.names if found else (), 1), 0)

    return Kind("instances.json", folder / "instances.json", read, json.loads, _json)


def _cached(path: Path, pixels: Any) -> Kind:
    """An image and its mask in the cache of decoded images."""
    np.save(path.with_suffix(".npy"), pixels)
    sources = [(path.with_suffix(".npy"), path.with_suffix(".npy"))]
    cache = DiskCache(path.parent, name="cached", settings="", sources=sources, channels=3, num_classes=5, size=None)
    cache.get(0)
    cache.put(0, torch.from_numpy(pixels).permute(2, 0, 1), torch.zeros(pixels.shape[:2], dtype=torch.uint8))
    (stored,) = cache.folder.glob("*.pixels")

    def read() -> None:
        found = cache.get(0)
        if found is None:
            raise UserError("counts as absent")
        if found[0].shape[1:] != found[1].shape or not bool(((found[1] < 5) | (found[1] == 255)).all()):
            raise ValueError(f"given {found}")

    return Kind(path.name, stored, read)


def _mask(path: Path) -> None:
    read_mask(path)


def _used_table(path: Path) -> None:
    table = LatencyTable.load(path)
    table.summary()
    table._build_command()


def _tensor_files(folder: Path) -> Iterator[Kind]:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval()
    save_state(
        folder / "state.pt", {"weights": network.state_dict(), "epoch": 1, "rng": [1, (2, 3)], "best": {"a": 0.5}}
    )
    yield Kind("state.pt", folder / "state.pt", lambda: load_state(folder / "state.pt"))
    save_weights(folder / "weights.safetensors", network.state_dict())
    yield Kind(
        "weights.safetensors", folder / "weights.safetensors", lambda: load_weights(folder / "weights.safetensors")
    )
    logits = {}
    for number, grid in enumerate((4, 3, 2)):
        logits[f"alpha_1_{number}"] = torch.zeros(grid, 5)
        logits[f"ratio_1_{number}"] = torch.zeros(max(grid - 1, 1), 5)
    torch.save({**logits, "beta_1_1": torch.zeros(2, 2), "beta_1_2": torch.zeros(1, 2)}, folder / "logits.pt")
    yield Kind("logits.pt", folder / "logits.pt", lambda: _refusing(lambda: PublishedLogits.load(folder / "logits.pt")))
    np.save(folder / "table.npy", np.array({"a": 1.0, "b": np.float64(2)}, dtype=object), allow_pickle=True)
    yield Kind("table.npy", folder / "table.npy", lambda: read_pickled_dict(folder / "table.npy"))
    export_onnx(network, folder / "network.onnx", (16, 16))
    yield Kind("network.onnx", folder / "network.onnx", lambda: benchmark(folder / "network.onnx", seconds=0.01))
    export_torch(network, folder / "network.pt2", (16, 16))
    yield Kind("network.pt2", folder / "network.pt2", lambda: read_program(folder / "network.pt2"))


def _refusing(read: Callable[[], object]) -> None:
    """A reader whose good example need not be complete."""
    try:
        read()
    except UserError as error:
        if "\x1b" in str(error):
            raise AssertionError("control characters") from error


def _run_files(folder: Path) -> Iterator[Kind]:
    for name in ("space", "rates"):
        yield from _search_files(folder / name, SPACE if name == "space" else RATES)
    run = folder / "retrained"
    network = {"name": "regseg_small", "options": {"rates": [[1, 1], [1, 1]], "width": 32}}
    configuration = {"network": network, "data": {"dataset": "rectangles", "size": [64, 64]}, "retrain": {}}
    configuration |= {"classes": ["a", "b"], "colours": [[1, 2, 3], [4, 5, 6]], "input_size": [64, 64]}
    with RunFolder.create(run, "retrain", configuration, 0, device="cpu") as created:
        from dnas.networks import network_by_name

        created.save_weights("best", network_by_name("regseg_small", 2, network["options"]).state_dict())
    path = run / "configuration.yaml"
    yield Kind("retrained/configuration.yaml", path, lambda: load_network(str(run)), yaml.safe_load, _yaml)
    yield Kind("retrained/best.safetensors", run / "best.safetensors", lambda: load_network(str(run)))


def _search_files(run: Path, text: str) -> Iterator[Kind]:
    space_file = run.with_suffix(".yaml")
    space_file.parent.mkdir(parents=True, exist_ok=True)
    space_file.write_text(text)
    space = load_space(str(space_file))
    problem = space.problem(None, 0) if not space.requires_table else None
    configuration = {"preset": "x", "space": space.configuration(), "data": {"dataset": "rectangles", "size": [64, 64]}}
    deriver = deriver_of(space)
    with RunFolder.create(run, "search", configuration, 0, device="cpu") as created:
        created.save_weights("architecture", _logits(space) if problem is None else problem.logits())
        monitor = {} if problem is None else problem.monitor()
        for step in range(3):
            created.log(
                {"kind": "step", "epoch": 0, "step": step, "loss_weights": 1.0, "learning_rate": 0.1, "phase": "search"}
            )
        epoch = {
            "kind": "epoch",
            "epoch": 0,
            "phase": "search",
            "miou": {"student": 0.5},
            "miou_outputs": {"student": {}},
        }
        created.log({**epoch, "entropy": {"student": {"alpha": 1.0}}, "latency_ms": {"student": 1.0}, **monitor})
    name = run.name
    derive = lambda: deriver_of_run(run)[1].search_summary(RunFolder.open(run))  # noqa: E731
    yield Kind(f"{name}/configuration.yaml", run / "configuration.yaml", derive, yaml.safe_load, _yaml)
    yield Kind(f"{name}/environment.json", run / "environment.json", lambda: RunFolder.open(run), json.loads, _json)
    yield Kind(f"{name}/architecture.safetensors", run / "architecture.safetensors", derive)
    yield Kind(f"{name}/log.jsonl", run / "log.jsonl", lambda: _log(run, deriver), _lines, _from_lines)
    if problem is None:
        score = {"branches": [32], "miou": 0.5, "latency_ms": 1.0, "score": 0.4, "argmax_ms": 1.0, "changes": []}
        selection = {"student": {"rule": "paper", "chosen": [32], "target_ms": 1.0, "scores": [score]}}
        write_json(run / "selection.json", selection)
        write_json(run / "estimator.json", {"networks": 3, "tau": 0.5, "rho": 0.5, "error": 0.1, "spread": 0.2})
        judged = {"network": "a", "miou": 0.5, "kind": "random", "latency_ms": 2.0}
        (run / "judged.jsonl").write_bytes(_from_lines([judged, {**judged, "network": "b"}]))
        candidates = {"target_ms": 1.0, "wanted": 2, "proven": True, "options": [{"a": "b"}, {"a": "c"}]}
        write_json(run / CANDIDATES, candidates)
        yield Kind(f"{name}/selection.json", run / "selection.json", lambda: _sections(run), json.loads, _json)
        yield Kind(
            f"{name}/{CANDIDATES}", run / CANDIDATES, lambda: saved_candidates(RunFolder.open(run)), json.loads, _json
        )
        yield Kind(
            f"{name}/estimator.json", run / "estimator.json", lambda: read_fit(RunFolder.open(run)), json.loads, _json
        )
        yield Kind(
            f"{name}/judged.jsonl",
            run / "judged.jsonl",
            lambda: judged_records(RunFolder.open(run)),
            _lines,
            _from_lines,
        )


def _logits(space: Any) -> dict[str, torch.Tensor]:
    from search_spaces.fasterseg import ArchitectureParameters

    found = {}
    for which in ("student", "teacher"):
        plan = space.plan(which)
        tables = ArchitectureParameters(
            plan.grid, len(plan.operators), plan.ratios, end_ratio=plan.end_ratio, noise=0.1
        )
        found |= {f"{which}.{name}": table for name, table in tables.named_logits().items()}
    return found


def _log(run: Path, deriver: Any) -> None:
    """All that reads the log, short of drawing it: a figure takes a second."""
    opened = RunFolder.open(run)
    records = opened.records()
    for name in ("loss_weights", "learning_rate", "loss"):
        step_series(records, name)
    epoch_series(records, "miou.student")
    if hasattr(deriver.space.settings, "rates"):
        from derive.dilated.rate_records import epoch_records

        epoch_records(opened, deriver.space.bounded(deriver.space.network()).layers)
    else:
        deriver.search_summary(opened)


def draw_log(run: Path) -> None:
    """Draw the curves of a run's log, for the slower tries of the script."""
    search_section(RunFolder.open(run).records())


def _sections(run: Path) -> None:
    from derive.multi_branch.report import selection_sections

    opened = RunFolder.open(run)
    read_selections(opened)
    selection_sections(opened)


def print_table(outcomes: dict[str, Outcome], title: str) -> None:
    """Print the tries and failures as a table, and the failures on standard error."""
    print(f"{title}\n\n| file | tries | refused | failures |\n|---|---|---|---|")
    for name, outcome in outcomes.items():
        print(f"| {name} | {outcome.tries} | {outcome.refused} | {len(outcome.failures)} |")
    for name, outcome in outcomes.items():
        for failure, times in Counter(outcome.failures).most_common(5):
            print(f"{name}: {times} x {failure}", file=sys.stderr)


def main() -> int:
    """Run the command line; returns 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000, help="damaged files of each kind")
    parser.add_argument("--kind", action="append", help="only this kind of file; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in kinds(Path(folder)).items():
            if arguments.kind is None or name in arguments.kind:
                outcome = outcomes[name] = run(kind, arguments.mutations, arguments.seed)
                # At once, so that an interrupted run has told what it found.
                print(
                    f"{name}: {outcome.tries} tries, {outcome.refused} refused, {len(outcome.failures)} failures",
                    *sorted(set(outcome.failures))[:5],
                    sep="\n  ",
                    file=sys.stderr,
                    flush=True,
                )
    print_table(outcomes, f"{arguments.mutations} mutations of each kind, seed {arguments.seed}")
    return int(any(outcome.failures for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
