"""Runs one job of a study without dnas's commands: writes a result that tells the job's command line.

    python fake_job.py BEHAVIOUR FOLDER

BEHAVIOUR is a YAML file that says for a kind of job (by name) what goes wrong: ``fail`` (exit status 1 at the first
attempt), ``always`` (at every attempt), ``mistake`` (exit status 2), ``die`` (killed at the first attempt), ``slow``
(goes on until a file ``go`` is in the study's folder), ``trial`` (logs a mIoU from its option ``x`` after two epochs;
without a file ``go`` the trials from the third one on log 0.1 and then go on until they are stopped).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from dnas.files import read_json, read_yaml
from dnas.json_lines import append_record
from dnas.workflows.study.job import attempts, end_with_parent, run_job


def log_trial(folder: Path, number: int, x: float) -> None:
    good = number < 2 or (folder.parent.parent / "go").exists()
    for epoch in range(2):
        append_record(folder / "log.jsonl", {"kind": "epoch", "epoch": epoch, "miou": 1 - x if good else 0.1})
        while epoch == 0 and not good:
            time.sleep(0.02)


def main(behaviour: Path, folder: Path) -> int:
    job = read_json(folder / "job.json")
    what = read_yaml(behaviour).get(job["kind"])

    def execute(words):
        first = len([one for one in attempts(folder) if "started" in one]) == 1
        if what == "die" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "always" or (what == "fail" and first):
            raise RuntimeError(f"{job['name']} failed")
        if what == "mistake":
            print("a mistake", file=sys.stderr)
            return 2
        while what == "slow" and not (folder.parent.parent / "go").exists():
            time.sleep(0.02)
        if what == "trial":
            log_trial(folder, int(job["values"]["trial"]), float(words[words.index("--x") + 1]))
        if "--out" in words and job["result"]:
            Path(words[words.index("--out") + 1]).write_text(" ".join(words))
        print(json.dumps({"words": len(words)}))
        return 0

    end_with_parent()
    return run_job(folder, execute)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
