"""A small version of FasterSeg's Fig. 4: the same search with different factors of the latency's gradients.

Runs the searches of a space, prints a Markdown table of the results (mIoU of the supernet, expected latency, share of
skips, mean ratio, entropies), and writes a figure of their course over the epochs. Finished runs in the folder are
reused.

    python scripts/compare_decoupling.py SPACE --data DATA --table T.json --out DIR [--seed 0] [--set KEY=VALUE ...]
        [--weights NAME=VALUE ...]

VALUE is that of search.decoupling: none, solved, or [w1,w2,w3] for alpha, beta and gamma.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from derive import DeriveOptions
from dnas.data import load_data_config
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.progress import RichProgress
from dnas.report.curves import epoch_series, field_of
from dnas.report.style import label_axes, legend_text, line_style, new_figure, save_png, styled
from dnas.runs import RunFolder
from dnas.workflows.derivation import derive_network
from dnas.workflows.search import run_search
from search_spaces import load_space
from search_spaces.fasterseg import FasterSegSpace

VARIANTS = ("plain=none", "solved=solved", "paper=[0.001,0.997,0.002]")
SERIES = {
    "miou.student": ("mIoU of the student (%)", 100.0),
    "latency_ms.student": ("expected latency (ms)", 1.0),
    "mean_ratio.student": ("mean ratio", 1.0),
    "skip_share.student": ("share of skips (%)", 100.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("space", help="preset or YAML file of a fasterseg space")
    parser.add_argument("--data", required=True, help="dataset, such as streets or camvid:DIR")
    parser.add_argument("--data-set", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--table", type=Path, required=True, help="latency table of the space")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="settings")
    parser.add_argument(
        "--weights",
        metavar="NAME=VALUE",
        action="append",
        help=f"search.decoupling under a name; default: {', '.join(VARIANTS)}",
    )
    options = parser.parse_args()
    variants = dict(variant.split("=", 1) for variant in options.weights or VARIANTS)
    table = LatencyTable.load(options.table)
    data = load_data_config(options.data, options.data_set)
    for name, decoupling in variants.items():
        space = load_space(options.space, [*options.settings, f"search.decoupling={decoupling}"])
        if not isinstance(space, FasterSegSpace):
            raise UserError(f"{options.space}: not a fasterseg space")
        with RichProgress() as progress:
            run_search(space, data, table, options.out / name, seed=options.seed, resume=True, progress=progress)
    print("\n".join(rows(options.out, list(variants))))
    save_png(figure(options.out, list(variants)), options.out / "decoupling.png")


def rows(out: Path, names: list[str]) -> list[str]:
    lines = [
        "| gradients | mIoU (%) | expected (ms) | derived (ms) | skips (%) | mean ratio | entropy α, β, γ |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        last = RunFolder.open(out / name, "search").records("epoch")[-1]
        miou, latency, ratio, skips = (factor * field_of(last, path) for path, (_, factor) in SERIES.items())
        entropies = ", ".join(f"{field_of(last, f'entropy.student.{kind}'):.2f}" for kind in ("alpha", "beta", "gamma"))
        derived = derive_network(out / name, DeriveOptions()).latency_ms or 0.0
        lines.append(
            f"| {name} | {miou:.1f} | {latency:.2f} | {derived:.2f} | {skips:.0f} | {ratio:.2f} | {entropies} |"
        )
    return lines


@styled
def figure(out: Path, names: list[str]) -> Figure:
    """One panel per series with one line per search."""
    drawn = new_figure(10.4, 2.9)
    for axes, (path, (title, factor)) in zip(drawn.subplots(1, len(SERIES)), SERIES.items(), strict=True):
        for index, name in enumerate(names):
            x, y = epoch_series(RunFolder.open(out / name, "search").records(), path)
            axes.plot(x, factor * y, label=legend_text(name), marker="o", markersize=3, **line_style(index))
        label_axes(axes, title=title, x="epoch", y="")
    drawn.axes[0].legend(loc="best")
    return drawn


if __name__ == "__main__":
    main()
