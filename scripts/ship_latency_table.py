"""Build and check a latency table to bundle with dnas; preferably on an otherwise idle machine.

    python scripts/ship_latency_table.py SPACE [--threads 1] [--budget 20m] [--twice] [any option of dnas latency build]

Run from the root of the checkout. For a preset SPACE this builds ``latency_tables/SPACE-DEVICE-BACKEND-PRECISION.json``
(or resumes an interrupted build), checks it on 30 whole networks measured twice, and writes the result to
``NAME.check.json`` and the figure to ``docs/images/latency-NAME.svg``. With ``--twice`` a second table is built in a
temporary folder, and the median relative difference of the entries is added to the check. Prints the check in Markdown.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.files import write_text
from dnas.latency.device import describe_device
from search_spaces import preset_names

FITTED = 20
"""Number of further networks for fitting the correction."""
TABLES, IMAGES = Path("latency_tables"), Path("docs/images")


def main() -> None:
    options, building = parse_arguments()
    if options.space not in preset_names():
        raise SystemExit(f"{options.space}: expected a preset, one of {', '.join(preset_names())}")
    chosen = ["--device", options.device, "--backend", options.backend, "--precision", options.precision, *building]
    name = table_name(options.space, options.device, options.backend, options.precision)
    out = TABLES / f"{name}.json"
    run("latency", "build", options.space, "--out", str(out), *chosen, "--resume")
    check = json.loads(
        run(
            *("latency", "check", str(out), options.space, "--networks", str(options.networks), "--repeat", "--json"),
            *("--fit", str(FITTED)),
            *("--figure", str(IMAGES / f"latency-{name}.svg")),
        )
    )
    if options.twice:
        check["repeated_build"] = repeated_build(out, options.space, chosen)
    write_text(TABLES / f"{name}.check.json", json.dumps(check, indent=2) + "\n")
    print("\n".join(row(name, check)))


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("space", help="name of a preset")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--networks", type=int, default=30, help="whole networks of the check")
    parser.add_argument("--twice", action="store_true", help="build a second table to check the repeatability")
    return parser.parse_known_args()


def table_name(space: str, device: str, backend: str, precision: str) -> str:
    """``SPACE-DEVICE-BACKEND-PRECISION`` with the device's model name in lower case with hyphens."""
    model = describe_device(resolve_device(device, mps=True)).name.lower()
    return f"{space}-{re.sub('[^a-z0-9]+', '-', model).strip('-')}-{backend}-{precision}"


def repeated_build(table: Path, space: str, chosen: list[str]) -> dict[str, Any]:
    """Build a second table; returns the median relative differences of its entries from ``table``."""
    with tempfile.TemporaryDirectory() as folder:
        second = str(Path(folder) / table.name)
        run("latency", "build", space, "--out", second, *chosen)
        found = json.loads(run("latency", "diff", str(table), second, "--largest", "0", "--json"))
    return {name: found[name] for name in ("entries", "median_relative_difference", "operators")}


def run(*arguments: str) -> str:
    """Run one command of dnas and return its standard output."""
    print(f"$ dnas {shlex.join(arguments)}", file=sys.stderr)
    done = subprocess.run([sys.executable, "-m", "dnas", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def row(name: str, check: dict[str, Any]) -> list[str]:
    """The check as a Markdown table."""
    noise, again, corrected = check["noise"], check.get("repeated_build"), check["correction"]["agreement"]
    difference = f"{100 * again['median_relative_difference']:.2f} %" if again else ""
    return [
        "| table | networks | Pearson | Spearman | error | error, corrected | noise: Pearson | noise: error | "
        "repeated build |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| {name} | {check['networks']} | {check['pearson']:.4f} | {check['spearman']:.4f} | {check['mape']:.1f} % | "
        f"{corrected['mape']:.1f} % | "
        f"{noise['pearson']:.4f} | {noise['mape']:.1f} % | {difference} |",
    ]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
