"""The configuration file of the study, checked when it is read."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from benchmarks.study.tasks import TURNS, Recipe
from tta_jax.data.encoders import ENCODERS
from tta_jax.data.registry import TASKS

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Pair:
    """A source and a target under an encoder, in a group of the study."""

    group: str
    encoder: str
    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Encoders that never saw the source: every encoder x every target, with one
    source.

    Attributes:
      name: of the group.
      source: the task that heads are fitted on.
      targets, encoders: names.
      few: those of the encoders that are looked at with few labels.
      costs: pairs [encoder, target] on which time and memory of every method are
        measured.
      finetuned: those of the encoders that are fine-tuned, too, when it is asked for.
    """

    name: str
    source: str
    targets: list[str]
    encoders: list[str]
    few: list[str] = dataclasses.field(default_factory=list)
    costs: list[list[str]] = dataclasses.field(default_factory=list)
    finetuned: list[str] = dataclasses.field(default_factory=list)

    def pair(self, encoder: str, target: str) -> Pair:
        return Pair(f"frozen {self.name}", encoder, self.source, target)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Encoders trained on their source: every source x every target.

    Attributes:
      encoder: "cnn" (the paper's, pictures) or "bag" (texts).
      epochs: of its training.
      slow_items: at most, of a source, for baselines that solve optimal transport.
      sources, targets: tasks.
      fresh: more targets, that the scores without labels are judged on; nothing about
        them was looked at before.
      ablation: tasks whose ordered pairs the paper's ablation runs on.
      published: pairs [source, target] that the published algorithm runs on; ten
        minutes a pair.
      sizes: pairs [source, target] that are looked at with few and with many items.
      finetuned: sources whose encoders are fine-tuned, too, when it is asked for.
      related: target -> the sources of which one should be ranked first.
    """

    name: str
    encoder: str
    epochs: int
    slow_items: int
    sources: list[str]
    targets: list[str]
    fresh: list[str] = dataclasses.field(default_factory=list)
    ablation: list[str] = dataclasses.field(default_factory=list)
    published: list[list[str]] = dataclasses.field(default_factory=list)
    sizes: list[list[str]] = dataclasses.field(default_factory=list)
    finetuned: list[str] = dataclasses.field(default_factory=list)
    related: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def encoder_of(self, source: str) -> str:
        """The encoder that is trained on the source part of a task."""
        return f"{self.encoder}-of-{source}"

    def pair(self, source: str, target: str) -> Pair:
        return Pair(f"trained {self.name}", self.encoder_of(source), source, target)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the configuration file says; see `study.toml`."""

    path: Path
    seed: int
    source_items: int
    target_items: int
    pair_items: int
    holdout: float
    repeats: int
    few: list[int]
    few_metrics: list[str]
    sizes: list[int]
    size_objectives: list[str]
    cost_methods: list[str]
    published_passes: int
    published_steps: int
    finetune_rates: list[float]
    finetune_epochs: int
    tasks: dict[str, Recipe]
    frozen: list[Frozen]
    trained: list[Trained]

    def recipe(self, task: str) -> Recipe:
        return self.tasks.get(task) or Recipe(task)

    def pairs(self) -> Iterator[tuple[Pair, int]]:
        """Every pair, and `slow_items` of its group; 0 for no limit."""
        for group in self.frozen:
            for encoder in group.encoders:
                for target in group.targets:
                    yield group.pair(encoder, target), 0
        for group in self.trained:
            for target in group.targets:  # pairs of a target share compiled programs
                for source in group.sources:
                    yield group.pair(source, target), group.slow_items

    def needed(self) -> Iterator[tuple[str, str, str]]:
        """(encoder, task, part) of all features that the study reads, each once."""
        found: dict[tuple[str, str, str], None] = {}
        for group in self.frozen:  # the slow ones
            for encoder in group.encoders:
                found[encoder, group.source, "source"] = None
                found |= dict.fromkeys(
                    (encoder, task, "target") for task in group.targets
                )
        for group in self.trained:
            for source in group.sources:
                encoder = group.encoder_of(source)
                found[encoder, source, "source"] = None
                found |= dict.fromkeys(
                    (encoder, task, "target") for task in group.targets + group.fresh
                )
                found |= dict.fromkeys(
                    (encoder, target, "more")
                    for first, target in group.sizes
                    if first == source
                )
        yield from found


def read(path: Path) -> Settings:
    """Read a configuration file.

    Raises:
      SystemExit: one line that names the file, the entry and what is wrong.
    """
    try:
        with open(path, "rb") as stream:
            raw = tomllib.load(stream)
        tasks = {
            name: _made(Recipe, entry, f"tasks.{name}")
            for name, entry in raw.pop("tasks", {}).items()
        }
        frozen = [_made(Frozen, entry, "frozen") for entry in raw.pop("frozen", [])]
        trained = [_made(Trained, entry, "trained") for entry in raw.pop("trained", [])]
        settings = _made(
            Settings,
            {**raw, "path": path, "tasks": tasks, "frozen": frozen, "trained": trained},
            "file",
        )
        _check(settings)
    except (OSError, tomllib.TOMLDecodeError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from None
    return settings


def _made(kind: type, entry: Any, where: str) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: found {entry!r}; give a table")
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := set(entry) - known:
        raise ValueError(
            f"{where}: unknown {', '.join(sorted(unknown))}; known are "
            f"{', '.join(sorted(known))}"
        )
    for name, hint in get_type_hints(kind).items():
        if name in entry and not _fits(entry[name], hint):
            raise ValueError(f"{where}: {name} = {entry[name]!r}; give {_asked(hint)}")
    try:
        return kind(**entry)
    except TypeError as error:
        raise ValueError(f"{where}: {str(error).partition(') ')[2] or error}") from None


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is list:
        return isinstance(value, list) and all(
            _fits(one, get_args(hint)[0]) for one in value
        )
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(
            _fits(one, get_args(hint)[1]) for one in value.values()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _asked(hint: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "a text"}
    if get_origin(hint) is list:
        return f"a list, each entry {_asked(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"a table, each entry {_asked(get_args(hint)[1])}"
    return plain.get(hint, "a table")


def _check_file(settings: Settings) -> None:
    """Ranges, and names of metrics and objectives."""
    from tta_jax.config import OBJECTIVES
    from tta_jax.metrics import REGISTRY

    counts = (
        "source_items",
        "target_items",
        "pair_items",
        "repeats",
        "published_passes",
        "published_steps",
        "finetune_epochs",
    )
    for name in counts:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} = {getattr(settings, name)}; give 1 or more")
    if not 0 < settings.holdout < 1:
        raise ValueError(f"holdout = {settings.holdout}; give a share between 0 and 1")
    for name in ("few", "sizes"):
        if any(number < 1 for number in getattr(settings, name)):
            raise ValueError(f"{name} = {getattr(settings, name)}; give 1 or more each")
    for name, known in (
        ("few_metrics", tuple(REGISTRY)),
        ("size_objectives", OBJECTIVES),
    ):
        if unknown := set(getattr(settings, name)) - set(known):
            raise ValueError(
                f"{name}: unknown {', '.join(sorted(unknown))}; known are "
                f"{', '.join(known)}"
            )


def _check(settings: Settings) -> None:
    _check_file(settings)
    for name, recipe in settings.tasks.items():
        if recipe.data not in TASKS:
            raise ValueError(
                f"tasks.{name}: data {recipe.data!r} is not one of {', '.join(TASKS)}"
            )
        if recipe.turn not in ("", *TURNS):
            raise ValueError(
                f"tasks.{name}: turn {recipe.turn!r} is not one of {', '.join(TURNS)}"
            )
        if recipe.labels not in ("given", "shuffled"):
            raise ValueError(
                f"tasks.{name}: labels {recipe.labels!r} is not 'given' or 'shuffled'"
            )
        for member in (m for members in recipe.classes.values() for m in members):
            if member not in TASKS[recipe.data].classes:
                raise ValueError(f"tasks.{name}: {recipe.data} has no class {member!r}")
    for _, task, _ in settings.needed():
        if settings.recipe(task).data not in TASKS:
            raise ValueError(
                f"task {task!r} is neither under [tasks] nor one of {', '.join(TASKS)}"
            )
    made = {
        group.encoder_of(source)
        for group in settings.trained
        for source in group.sources
    }
    for group in settings.frozen:
        if unknown := set(group.encoders) - set(ENCODERS) - made:
            raise ValueError(
                f"frozen.{group.name}: unknown encoder {', '.join(sorted(unknown))}"
            )
        if not group.targets:
            raise ValueError(f"frozen.{group.name}: no target; give one or more")
        known = {
            (encoder, target) for encoder in group.encoders for target in group.targets
        }
        for entry in (
            *map(tuple, group.costs),
            *((encoder, group.targets[0]) for encoder in group.few + group.finetuned),
        ):
            if entry not in known:
                raise ValueError(
                    f"frozen.{group.name}: {' x '.join(entry)} is not among its "
                    "encoders and targets"
                )
    for group in settings.trained:
        if unknown := set(group.ablation) - (set(group.sources) & set(group.targets)):
            raise ValueError(
                f"trained.{group.name}.ablation: {', '.join(sorted(unknown))} is no "
                "source and target of it"
            )
        for part, pairs in (("published", group.published), ("sizes", group.sizes)):
            for pair in pairs:
                if (
                    len(pair) != 2
                    or pair[0] not in group.sources
                    or pair[1] not in group.targets
                ):
                    raise ValueError(
                        f"trained.{group.name}.{part}: {pair} is no pair of its "
                        "sources and targets"
                    )
        if unknown := set(group.finetuned) - set(group.sources):
            raise ValueError(
                f"trained.{group.name}: {', '.join(sorted(unknown))} is no source of it"
            )
        if group.encoder not in ("cnn", "bag"):
            raise ValueError(
                f"trained.{group.name}: encoder {group.encoder!r} is not 'cnn' or 'bag'"
            )
        for target, sources in group.related.items():
            if target not in group.targets or not set(sources) <= set(group.sources):
                raise ValueError(
                    f"trained.{group.name}.related: {target} = {sources} are not among "
                    "its targets and sources"
                )
