"""Pictures and texts under an ONNX file, run by ONNX Runtime."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax.data.encoders.base import Batch, Encoder, in_order, longest_first, text_of
from tta_jax.data.encoders.libraries.pictures import channels_first, preprocessing_of
from tta_jax.data.encoders.libraries.reference import (
    ModelOptions,
    Reference,
    identified,
    loading,
    once,
)
from tta_jax.data.installed import file_hash

_LONGEST = 512  # tokens, where tokenizer.json sets no limit
_TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


def load(
    reference: Reference, options: ModelOptions, packages: Sequence[str]
) -> Encoder:
    """Load a graph: the value of one of its tensors.

    Args:
      reference: a file; the setting `output` names the tensor.
      options: how it is run; the file says the precision.
      packages: distributions whose versions count.

    Raises:
      ValueError: as `load_library_encoder`.
    """
    path = reference.path()
    if path is None or not path.is_file():
        raise ValueError(f"encoder: there is no ONNX file {reference.model!r}")
    pool = reference.choice("pool", ("mean", "cls"))
    with loading(reference):
        import onnx

        model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    inputs = _inputs(graph)
    output = _output(reference, graph)
    hashes = [file_hash(path), output, pool or ""]
    hashes += [file_hash(file) for file in _external(model, path)]
    session = once(lambda: _session(reference, path, options, output))
    common: dict[str, Any] = {
        "name": reference.name,
        "load": session,
        "jit": False,
    }
    if "input_ids" in inputs:
        tokenizer = path.with_name("tokenizer.json")
        if not tokenizer.is_file() or set(inputs) - _TEXT_INPUTS:
            raise ValueError(
                f"encoder: {reference.text!r} takes {', '.join(inputs)}; for texts "
                "tokenizer.json has to lie beside it, and only "
                f"{', '.join(sorted(_TEXT_INPUTS))} are known"
            )
        count, length = (*inputs["input_ids"][0], None, None)[:2]
        tokenize = once(lambda: _tokenizer(reference, tokenizer, length))
        return Encoder(
            modality="text",
            prepare=text_of,
            build=lambda: (_texts(session, inputs, output, pool), ()),
            batches=lambda texts, size: _tokens(
                tokenize(), texts, count or size, length
            ),
            batch_size=count or 32,
            chunk=512,
            **identified(reference, options, packages, [*hashes, file_hash(tokenizer)]),
            preprocessing=f"{tokenizer.name} beside the file; output {output}, pooling "
            f"{pool or 'mean'} over positions",
            **{**common, "load": lambda: (session(), tokenize())},
        )
    name, dims, kind = _picture_input(reference, inputs)
    first = dims[1] == 3
    shape = (dims[2], dims[3]) if first else (dims[1], dims[2])
    prepare = preprocessing_of(reference, shape, path.parent)
    if kind == np.uint8 and not prepare.gives_bytes():
        raise ValueError(
            f"encoder: {reference.text!r} takes bytes, but its preprocessing gives "
            "other numbers; write #preprocess=bytes"
        )
    turned = channels_first(prepare) if first else prepare
    batch = dims[0]
    return Encoder(
        modality="image",
        prepare=lambda picture: turned(picture).astype(kind),
        build=lambda: (_pictures(session, name, output, pool, reference), ()),
        # A graph for a fixed number of items gets as many, the last ones repeated.
        batches=in_order if batch is None else lambda items, _: in_order(items, batch),
        batch_size=batch or 8,
        **identified(reference, options, packages, [*hashes, str(prepare)]),
        preprocessing=f"{prepare}; output {output}",
        **common,
    )


def _inputs(graph: Any) -> dict[str, tuple[list[int | None], Any]]:
    """Shape and dtype of each input, None where a dimension is open."""
    import onnx

    weights = {found.name for found in graph.initializer}
    found = {}
    for given in graph.input:
        if given.name not in weights:
            if not given.type.tensor_type.elem_type:
                raise ValueError(
                    f"encoder: the input {given.name!r} is no tensor; an input of "
                    "pictures or input_ids of texts is needed"
                )
            kind = given.type.tensor_type
            shape = [dim.dim_value or None for dim in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            found[given.name] = (shape, dtype)
    return found


def _picture_input(
    reference: Reference, inputs: dict[str, tuple[list[int | None], Any]]
) -> tuple[str, list[int | None], Any]:
    shown = ", ".join(f"{name} {shape}" for name, (shape, _) in inputs.items())
    if len(inputs) == 1:
        ((name, (shape, dtype)),) = inputs.items()
        right = dtype.kind == "f" or dtype == np.uint8
        if len(shape) == 4 and 3 in (shape[1], shape[3]) and right:
            return name, shape, dtype
    raise ValueError(
        f"encoder: {reference.text!r} takes {shown}; one input of pictures, (n, 3, h, "
        "w) or (n, h, w, 3), or input_ids of texts is needed"
    )


def _output(reference: Reference, graph: Any) -> str:
    """The tensor that is asked for, or the only output."""
    outputs = [out.name for out in graph.output]
    wanted = reference.settings.get("output")
    if wanted is None:
        if len(outputs) == 1:
            return outputs[0]
        if not outputs:
            raise ValueError(
                f"encoder: {reference.model!r} holds no graph; fetch it again"
            )
        raise ValueError(
            f"encoder: {reference.text!r} has {len(outputs)} outputs, "
            f"{', '.join(outputs)[:300]}; name one: {reference.text}#OUTPUT"
        )
    known = [name for node in graph.node for name in node.output if name]
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 3) or [*outputs, *known[-3:]]
        raise ValueError(
            f"encoder: {reference.model!r} has no tensor {wanted!r}; there are "
            f"{', '.join(dict.fromkeys(near))} among {len(known)}"
        )
    return wanted


def _tensors(graph: Any) -> Iterator[Any]:
    """The weights in a graph or function: its own, those of its nodes, and those of
    graphs inside.
    """
    yield from getattr(graph, "initializer", ())
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _external(model: Any, path: Path) -> list[Path]:
    """Files beside a model that hold its weights.

    Raises:
      ValueError: one lies elsewhere, or is missing.
    """
    names = {
        entry.value
        for graph in (model.graph, *model.functions)
        for tensor in _tensors(graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = []
    for name in sorted(names):
        file = path.parent / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_file():
            raise ValueError(
                f"encoder: {str(path)!r} wants its weights from {name!r}, which is no "
                "file beside it"
            )
        files.append(file)
    return files


def _session(
    reference: Reference, path: Path, options: ModelOptions, output: str
) -> Any:
    """A session that computes `output`, and no more than it needs."""
    with loading(reference):
        import onnx
        import onnxruntime

        there = onnxruntime.get_available_providers()
        kinds = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        kind, _, number = (options.device or "").partition(":")
        kind = kind or ("cuda" if kinds["cuda"] in there else "cpu")
        if kinds.get(kind) not in there or (number and not number.isdigit()):
            raise ValueError(
                f"device: found {options.device!r}; ONNX Runtime has here "
                f"{', '.join(k for k, v in kinds.items() if v in there)}"
            )
        provider: Any = kinds[kind]
        if number:
            provider = (provider, {"device_id": int(number)})
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        model = onnx.load(str(path), load_external_data=False)
        if output in [out.name for out in model.graph.output]:
            return onnxruntime.InferenceSession(str(path), settings, [provider])
        onnx.load_external_data_for_model(model, str(path.parent))
        _cut(model.graph, output)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), settings, [provider]
        )


def _cut(graph: Any, output: str) -> None:
    """Make a tensor the only output, without the nodes that it does not need."""
    import onnx

    needed, nodes = {output}, []
    for node in reversed(graph.node):  # they are in the order of computation
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            for inner in _inner_graphs(node):
                needed.update(name for sub in inner.node for name in sub.input)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    kept = [out for out in graph.value_info if out.name == output]
    del graph.output[:]
    graph.output.extend(kept or [onnx.ValueInfoProto(name=output)])


def _inner_graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
            for sub in attribute.g.node:
                yield from _inner_graphs(sub)


def _pictures(
    session: Callable[[], Any],
    name: str,
    output: str,
    pool: str | None,
    reference: Reference,
) -> Callable:
    def apply(_: Any, pictures: np.ndarray) -> np.ndarray:
        found = np.asarray(session().run([output], {name: pictures})[0])
        if found.ndim == 4:
            if pictures.shape[1] != 3:
                # Operators of ONNX take channels first, other parts of such a graph
                # last.
                raise ValueError(
                    f"encoder: {output!r} has shape {found.shape}, and nothing says "
                    "which axis holds its channels, as the pictures have them last; "
                    "name a tensor of shape (n, d)"
                )
            return found.mean((2, 3))
        if found.ndim == 3:
            if pool is None:
                raise ValueError(
                    f"encoder: {output!r} has shape {found.shape}, positions first; "
                    f"say how they become one: {reference.text},pool=cls or pool=mean"
                )
            return found[:, 0] if pool == "cls" else found.mean(1)
        return found

    return apply


def _texts(
    session: Callable[[], Any],
    inputs: dict[str, tuple[list[int | None], Any]],
    output: str,
    pool: str | None,
) -> Callable:
    def apply(_: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
        given = {name: arrays[name].astype(kind) for name, (_, kind) in inputs.items()}
        found = np.asarray(session().run([output], given)[0])
        if found.ndim == 3 and pool == "cls":
            return found[:, 0]
        if found.ndim == 3:
            shown = arrays["attention_mask"][..., None].astype(found.dtype)
            return (found * shown).sum(1) / np.maximum(shown.sum(1), 1)
        return found

    return apply


def _tokenizer(reference: Reference, file: Path, length: int | None) -> Any:
    """The tokenizer in a file, which cuts texts off.

    Args:
      reference: for messages.
      file: tokenizer.json.
      length: tokens of a text, where the graph has it fixed.
    """
    with loading(reference):
        from tokenizers import Tokenizer

        found = Tokenizer.from_file(str(file))
        limit = (found.truncation or {}).get("max_length", _LONGEST)
        found.enable_truncation(min(limit, length or limit))
        found.no_padding()
        return found


def _tokens(
    tokenizer: Any, texts: Sequence[str], size: int, length: int | None
) -> Iterator[Batch]:
    """Batches of `size` texts, the longest first, padded to `length`, or to the longest
    of the batch; the last batch is filled up with its last text.
    """
    found = tokenizer.encode_batch(list(texts))
    for items in longest_first([one.ids for one in found], size):
        shown = [found[i] for i in items] + [found[items[-1]]] * (size - len(items))
        longest = length or max(1, *(len(one.ids) for one in shown))
        arrays = {name: np.zeros((size, longest), np.int64) for name in _TEXT_INPUTS}
        for row, one in enumerate(shown):
            count = len(one.ids)
            arrays["input_ids"][row, :count] = one.ids
            arrays["token_type_ids"][row, :count] = one.type_ids
            arrays["attention_mask"][row, :count] = 1
        yield Batch(arrays, items, np.arange(len(items)))
