"""Runs one job of a study without dnas's commands: writes a result that tells the job's command line.

    python fake_job.py BEHAVIOUR FOLDER

BEHAVIOUR is a YAML file that says for a kind of job (by name) what goes wrong: ``fail`` (exit status 1 at the first
attempt), ``always`` (at every attempt), ``mistake`` (exit status 2), ``die`` (killed at the first attempt), ``slow``
(goes on until a file ``go`` is in the study's folder).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from dnas.files import read_json, read_yaml
from dnas.workflows.study.job import attempts, end_with_parent, run_job


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
        if "--out" in words and job["result"]:
            Path(words[words.index("--out") + 1]).write_text(" ".join(words))
        print(json.dumps({"words": len(words)}))
        return 0

    end_with_parent()
    return run_job(folder, execute)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
