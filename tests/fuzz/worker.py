"""Try changed files in this process, and say of each what came out of it.

What a file may not do is watched: import a module, open a socket, start a process, run
code; take more memory or time than it is given.
"""

import codecs
import json
import resource
import shutil
import signal
import sys
import time
import traceback
import unicodedata  # noqa: F401 (codecs use it)
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.kinds import KINDS, described, files_of, in_pages
from tests.fuzz.mutations import mutated

GOOD = ("same", "other", "refused")
MEMORY = 4 << 30  # bytes of addresses beside those of the imports
SECONDS = 20
_FORBIDDEN = ("import", "exec", "socket.", "subprocess.", "os.system", "os.exec")
_FORBIDDEN_TOO = ("os.fork", "os.posix_spawn", "os.spawn", "ctypes.dlopen")


class Watch:
    """Note events that no file may cause, while `on`."""

    def __init__(self):
        self.on, self.met = False, []
        sys.addaudithook(self._met)

    def _met(self, event, arguments):
        if self.on and event.startswith((*_FORBIDDEN, *_FORBIDDEN_TOO)):
            what = str(arguments[0]) if arguments else ""
            self.met.append(f"{event} {what}"[:200])


class TooLong(BaseException):
    """Raised in the reader by the clock; readers catch no such exception."""


def _too_long(*_):
    raise TooLong


def make_seeds(folder: Path, names) -> None:
    """A valid example of each kind in a folder of its name."""
    for name in names:
        place = folder / name
        if not place.exists():
            half = folder / f".{name}"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            KINDS[name].write(half)
            half.rename(place)


class Worker:
    """Read changed copies of examples.

    Args:
      seeds: the folder of `make_seeds`.
      scratch: a folder of its own.
      seed: of the changes.
      names: of the kinds, which take turns.
    """

    def __init__(self, seeds: Path, scratch: Path, seed: int, names):
        warnings.simplefilter("ignore")
        self.seeds, self.scratch, self.seed, self.names = seeds, scratch, seed, names
        self.watch = Watch()
        self.right, self.content = {}, {}
        for name in names:
            place = seeds / name
            self.right[name] = KINDS[name].read(place)
            self.content[name] = [p.read_bytes() for p in files_of(KINDS[name], place)]
        # What readers import when they first need it: codecs of Python's own, which
        # messages and JSON texts use, and formats of pictures.
        for codec in (
            "unicode_escape",
            "utf-16-le",
            "utf-16-be",
            "utf-32-le",
            "utf-32-be",
        ):
            codecs.lookup(codec)
        Image.init()
        for number in range(len(names) * 3):
            self.run(-1 - number)

    def run(self, number: int) -> dict:
        """Outcome of one changed file: its kind, "same", "other", "refused", or what is
        wrong.
        """
        name = self.names[number % len(self.names)]
        kind, place = KINDS[name], self.scratch / "case"
        rng = np.random.default_rng([self.seed, number % (1 << 40)])
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.seeds / name, place)
        files = files_of(kind, place)
        file = files[rng.integers(len(files))]
        before = file.read_bytes()
        after, anew = mutated(before, rng, self.content[name])
        file.write_bytes(after)
        outcome, says = self._read(kind, name, place, (file, before, after, anew))
        if outcome not in GOOD:
            shutil.copytree(place, self.scratch / str(number), dirs_exist_ok=True)
        return {"kind": name, "outcome": outcome, "says": says, "number": number}

    def _read(self, kind, name, place, change):
        file, before, after, anew = change
        signal.signal(signal.SIGALRM, _too_long)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.watch.met.clear()
        self.watch.on = True
        try:
            found, error = kind.read(place), None
        except (Exception, TooLong) as caught:
            found, error = None, caught
        finally:
            self.watch.on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.watch.met:
            return "forbidden", self.watch.met[0]
        if error is not None:
            return judged(error, file, place)
        if found == self.right[name]:
            return "same", ""
        if kind.checked == "all" and not anew:
            return "wrong value", described(found)
        if kind.checked == "pages" and len(before) == len(after):
            pair = (np.frombuffer(data, np.uint8) for data in (before, after))
            places = np.flatnonzero(np.not_equal(*pair))
            if before[:4] == b"PAR1" and in_pages(before, places):
                return "wrong value", described(found)
        return "other", ""


def judged(error, file: Path, place: Path) -> tuple[str, str]:
    """What an exception of a reader counts as, and what it says.

    Args:
      error: the exception.
      file, place: the changed file and its folder, one of which it should name.
    """
    says = str(error)
    if type(error) is not ValueError:
        where = "".join(traceback.format_exception(error))
        return f"raised {type(error).__name__}", where[-1500:]
    if not says.isprintable():
        return "not one line", repr(says)
    if file.name not in says and str(place) not in says:
        return "no name", says
    return "refused", says


def main() -> None:
    seeds, scratch, seed, begin, step, names = sys.argv[1:]
    worker = Worker(Path(seeds), Path(scratch), int(seed), json.loads(names))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    number = int(begin)
    while True:
        print(json.dumps({"number": number, "begun": time.time()}), flush=True)
        print(json.dumps(worker.run(number)), flush=True)
        number += int(step)


if __name__ == "__main__":
    main()
