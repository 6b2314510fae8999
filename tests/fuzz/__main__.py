"""`python -m tests.fuzz --minutes 10 [--seed N] [--kinds npz,scan] [--only NUMBER]`."""

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.worker import GOOD, SECONDS, Worker, make_seeds


def fuzz(
    minutes: float, seed: int, names, inputs: int | None = None, jobs: int = 1
) -> tuple[collections.Counter, list[dict], Path]:
    """How often each outcome of each kind was met, the failures, and where their files
    are.

    Args:
      minutes: after which no further file is tried.
      seed: of the changes.
      names: of kinds.
      inputs: after how many files to stop.
      jobs: processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="tta_fuzz_"))
    make_seeds(folder / "seeds", names)
    counts, failures, lock = collections.Counter(), [], threading.Lock()
    end = time.monotonic() + 60 * minutes

    def left() -> bool:
        done = sum(counts.values())
        return time.monotonic() < end and (inputs is None or done < inputs)

    def met(found: dict, case: Path) -> None:
        with lock:
            counts[found["kind"], found["outcome"]] += 1
            if found["outcome"] in GOOD:
                return
            kept = folder / "failures" / str(found["number"])
            shutil.copytree(case, kept, dirs_exist_ok=True)
            which = f"--seed {seed} --only {found['number']}"
            if list(names) != list(KINDS):
                which += f" --kinds {','.join(names)}"
            failures.append({**found, "again": f"python -m tests.fuzz {which}"})

    def work(job: int) -> None:
        number, scratch = job, folder / f"job{job}"
        scratch.mkdir()
        while left():
            command = [sys.executable, "-m", "tests.fuzz.worker", str(folder / "seeds")]
            command += [str(scratch), str(seed), str(number), str(jobs)]
            with subprocess.Popen(
                [*command, json.dumps(list(names))],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            ) as process:
                number, ended = follow(process, number, scratch)
                process.kill()
            if not ended:
                name = list(names)[number % len(names)]
                says = f"exit status {process.returncode}"
                died = {"kind": name, "number": number, "outcome": "died", "says": says}
                met(died, scratch / "case")
                number += jobs

    def follow(process: subprocess.Popen, number: int, scratch: Path):
        """The input that comes next, and whether all ended well."""
        # A library that does not come back is not stopped by the worker's clock.
        clock = threading.Timer(5 * SECONDS, process.kill)
        clock.start()
        for line in process.stdout or ():
            clock.cancel()
            clock = threading.Timer(5 * SECONDS, process.kill)
            clock.start()
            said = json.loads(line)
            number = said["number"]
            if "outcome" in said:
                met(said, scratch / str(number))
                number += jobs
                if not left():
                    break
        clock.cancel()
        return number, not left()

    threads = [threading.Thread(target=work, args=(job,)) for job in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts, failures, folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, help="stop after so many")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--kinds", help="of files, with commas between them")
    parser.add_argument("--only", type=int, help="the number of one input, here")
    args = parser.parse_args()
    names = args.kinds.split(",") if args.kinds else list(KINDS)
    if args.only is not None:
        folder = Path(tempfile.mkdtemp(prefix="tta_fuzz_"))
        make_seeds(folder / "seeds", names)
        worker = Worker(folder / "seeds", folder, args.seed, names)
        print(json.dumps(worker.run(args.only), indent=1), folder / "case")
        return 0
    counts, failures, folder = fuzz(
        args.minutes, args.seed, names, args.inputs, args.jobs
    )
    outcomes = sorted({outcome for _, outcome in counts})
    for name in names:
        said = [f"{counts[name, o]} {o}" for o in outcomes if counts[name, o]]
        print(f"{name:<20} {', '.join(said)}")
    print(f"{sum(counts.values()):,} inputs, {len(failures)} failures in {folder}")
    for found in failures[:40]:
        print(f"{found['kind']}: {found['outcome']}: {found['says'][-600:]}")
        print(f"  {found['again']}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
