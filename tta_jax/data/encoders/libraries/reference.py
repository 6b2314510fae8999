"""What names a model of another library, and how it is to be run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tta_jax._internal.text import one_line, printable, read_json
from tta_jax.data.installed import file_hash, package_version

_FORMAT = 1  # raised whenever features of the same model change
_SETTINGS = (".json", ".txt", ".model", ".tiktoken")  # and tokenizers
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# What other frameworks and formats have beside the weights.
_IGNORED = ("*.onnx", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot", "*.tflite")
_OURS = tuple(
    f"{name}: "
    for name in ("encoder", "device", "precision", "weights", "trust_remote_code")
)
PRECISIONS = ("float32", "float16", "bfloat16")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded and run.

    Attributes:
      weights: a file or folder in place of the model's own weights, or None.
      device: "cpu", "cuda", "cuda:1", "mps", or None for the best that there is.
      precision: "float32", "float16" or "bfloat16", of weights and activations.
      trust_remote_code: whether Python code that comes with a model may run.
    """

    weights: str | None = None
    device: str | None = None
    precision: str = "float32"
    trust_remote_code: bool = False

    @property
    def code_hint(self) -> str:
        """What to do where a model wants to run code, as the end of a message."""
        if self.trust_remote_code:
            return ""
        return (
            "; where it wants to run code of its own, read that code, and allow it "
            "with trust_remote_code=True (--trust-remote-code)"
        )

    def refuse(self, name: str, why: str, *fields: str) -> None:
        """Refuse options that a library does not have.

        Raises:
          ValueError: names the first of `fields` that was given, and says `why`.
        """
        for field in dataclasses.fields(self):
            if (
                field.name in fields
                and (value := getattr(self, field.name)) != field.default
            ):
                raise ValueError(
                    f"{field.name}: found {value!r} for encoder {name!r}, {why}"
                )


@dataclasses.dataclass(frozen=True)
class Reference:
    """The parts of `PREFIX:MODEL#SETTINGS`.

    Attributes:
      text: the whole.
      prefix: names the library.
      model: a name, a file or a folder.
      settings: `key=value` pairs, separated by commas; of an ONNX file, a part
        without "=" is the output.
    """

    text: str
    prefix: str
    model: str
    settings: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Divide a name into its parts.

        Raises:
          ValueError: for an empty model, or a setting without a value.
        """
        prefix, _, rest = text.partition(":")
        model, _, said = rest.partition("#")
        if said and _path(rest) is not None:
            model, said = rest, ""
        settings = {}
        for part in filter(None, said.split(",")):
            key, equals, value = part.partition("=")
            if not equals and prefix == "onnx":
                key, value = "output", part
            if not value:
                raise ValueError(
                    f"encoder: {text!r} has a setting {part!r} without a value; write "
                    f"{prefix}:MODEL#KEY=VALUE,..."
                )
            if key in settings:
                raise ValueError(f"encoder: {text!r} sets {key!r} twice; leave one out")
            settings[key] = value
        if not model:
            raise ValueError(
                f"encoder: {text!r} names no model; write {prefix}:MODEL (see "
                "tta-jax doctor)"
            )
        return cls(text, prefix, model, settings)

    @property
    def name(self) -> str:
        """The name for tables: without the folders of a path."""
        path = _path(self.model)
        short = self.model if path is None else path.resolve().name
        said = ",".join(f"{k}={v}" for k, v in sorted(self.settings.items()))
        return f"{self.prefix}:{short}" + (f"#{said}" if said else "")

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        """The value of a setting that has to be one of `choices`; None where it is
        not given.
        """
        value = self.settings.get(key)
        if value is not None and value not in choices:
            raise ValueError(
                f"encoder: {self.text!r} has {key}={value}; give one of "
                f"{', '.join(choices)}"
            )
        return value

    def path(self) -> Path | None:
        """The file or folder that is the model; None where it is a name.

        Raises:
          ValueError: it looks like a path, and there is nothing.
        """
        path = _path(self.model)
        if path is not None:
            return path
        if self.model.startswith((".", "/", "~")) or self.model.endswith("/"):
            raise ValueError(
                f"encoder: {self.text!r}: there is no file or folder {self.model!r}"
            )
        return None


def _path(text: str) -> Path | None:
    """The file or folder of that name; None where there is none."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # too long a name, or no such user
        return None


def identified(
    reference: Reference,
    options: ModelOptions,
    packages: Sequence[str],
    hashes: Sequence[str],
) -> dict[str, Any]:
    """The fields `identity` and `details` of an `Encoder`, all that its features depend
    on, and `on_cpu`.

    Args:
      reference: what names the model; where its files lie does not count.
      options: all but `weights`, whose hash counts, do.
      packages: distributions whose versions count.
      hashes: of the model's files.
    """
    # Without the library nobody knows which device is best; the driver tells.
    driver = Path("/dev/nvidiactl").exists()
    details = {
        "library": reference.prefix,
        "settings": reference.settings,
        "device": options.device or f"auto, NVIDIA {driver}",
        "precision": options.precision,
        # Of a model that the library has, too, it decides whose code runs.
        "trust_remote_code": options.trust_remote_code,
        "versions": {name: package_version(name) for name in packages},
        "files": list(hashes),
    }
    return {
        "identity": json.dumps([_FORMAT, details], sort_keys=True),
        "details": details,
        "on_cpu": (options.device or ("cuda" if driver else "cpu")) == "cpu",
    }


def hub_folder(reference: Reference, repository: str, needs: str) -> Path:
    """The local folder of a repository of the Hugging Face hub, which is downloaded
    unless it is there already; files with code are not.

    Args:
      reference: for messages.
      repository: `OWNER/REPO`, perhaps with `@REVISION`.
      needs: a file that tells a whole copy from a part of one.

    Raises:
      ValueError: there is none, or it cannot be reached; one line.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = repository.partition("@")

    def fetch(patterns: Sequence[str], local: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(patterns),
                ignore_patterns=list(_IGNORED),
                local_files_only=local,
            )
        )

    def whole(folder: Path) -> bool:
        return (folder / needs).exists() and any(weight_files(folder))

    with contextlib.suppress(Exception):  # whatever it is, the hub may have it
        folder = fetch(["*"], True)
        if whole(folder):
            return folder
    try:
        folder = fetch([f"*{end}" for end in (*_SETTINGS, ".safetensors")], False)
        if not whole(folder):
            folder = fetch([f"*{end}" for end in (*_SETTINGS, *_WEIGHTS)], False)
    except Exception as error:
        raise ValueError(
            f"encoder: {reference.text!r} is not kept on this machine, and cannot be "
            f"fetched from the Hugging Face hub ({reason(error)}); download "
            f"it elsewhere and name the folder: {reference.prefix}:FOLDER"
        ) from None
    if not whole(folder):
        raise ValueError(
            f"encoder: the repository of {reference.text!r} has no {needs} with "
            "weights (.safetensors, .bin); name another"
        )
    return folder


def reason(error: Exception) -> str:
    """The first line of an error of the hub, which goes on to explain settings."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0])[:160]


def weight_files(folder: Path) -> Iterator[Path]:
    """The files of a folder that hold weights."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in _WEIGHTS and path.is_file():
            yield path


def model_folder(
    reference: Reference, repository: str, needs: str = "config.json"
) -> Path:
    """The folder that a reference names, or that of its repository.

    Args:
      reference: of a model.
      repository, needs: as of `hub_folder`.

    Raises:
      ValueError: as `hub_folder`, and for a file, or a folder without config.json.
    """
    path = reference.path()
    if path is None:
        return hub_folder(reference, repository, needs)
    if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
        raise ValueError(
            f"encoder: {reference.text!r}: {str(path)!r} has no config.json; name the "
            "folder that the model was saved in"
        )
    if not any(weight_files(path)):
        raise ValueError(
            f"encoder: {reference.text!r}: folder {str(path)!r} has no weights "
            "(.safetensors, .bin)"
        )
    return path


def content_hash(folder: Path) -> str:
    """A hash of the settings, tokenizer and weights in a folder, names included."""
    made = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (*_SETTINGS, *_WEIGHTS, ".py") and path.is_file():
            made.update(f"{path.relative_to(folder)}\0{file_hash(path)}\n".encode())
    return made.hexdigest()


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ValueError: names `encoder` and the file.
    """
    try:
        found = read_json(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"encoder: {str(path)!r} cannot be read as JSON ({one_line(error)})"
        ) from None
    return found


def once(make: Callable[[], T]) -> Callable[[], T]:
    """A function that calls `make` when it is first called, in one thread only, and
    returns the same value from then on.
    """
    lock = threading.Lock()
    made: list[T] = []

    def get() -> T:
        with lock:
            if not made:
                made.append(make())
        return made[0]

    return get


@contextlib.contextmanager
def loading(reference: Reference, hint: str = "") -> Iterator[None]:
    """Errors of a library that loads a model, in one line."""
    try:
        yield
    except Exception as error:
        says = one_line(error)
        if isinstance(error, ValueError) and says.startswith(_OURS):
            raise
        if len(says) > 300:  # the reason may stand at either end
            says = f"{says[:140]} ... {says[-155:]}"
        raise ValueError(
            f"encoder: {reference.text!r} cannot be loaded ({type(error).__name__}: "
            f"{says}){hint}"
        ) from error
