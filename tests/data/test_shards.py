"""WebDataset shards: tar files read where they lie; damage and doubt are named."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tta_jax._internal.warning import DataWarning
from tta_jax.cli.main import main
from tta_jax.data import extract_features, open_data
from tta_jax.data.extraction.adapters import as_encoder


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 4, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def shard(path, members, form=tarfile.PAX_FORMAT):
    """Write members, `{name: bytes or text}` or pairs of them, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = members.items() if isinstance(members, dict) else members
    with tarfile.open(path, "w", format=form) as stored:
        for name, content in pairs:
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            stored.addfile(member, io.BytesIO(content))
    return path


def three(start=0, **more):
    """Members of three pictures with classes, and more of what is given."""
    members = {}
    for i in range(start, start + 3):
        members[f"{i:04d}.png"] = png(i)
        members[f"{i:04d}.cls"] = str(i % 2)
        members |= {f"{i:04d}.{kind}": f(i) for kind, f in more.items()}
    return members


def first_pixel(examples, **more):
    made = as_encoder(lambda batch: batch[:, 0, 0].astype("float32"), "image")
    return extract_features(made, examples, cache=False, **more)


# -- what is read ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_pictures_and_classes_of_shards(tmp_path, form):
    for k in range(3):
        shard(tmp_path / f"s-{k:03d}.tar", three(3 * k), form)
    data = open_data(f"{tmp_path}/s-{{000..002}}.tar")
    assert (len(data), data.name, data.class_names) == (9, "s", ("0", "1"))
    assert data.describe(3) == "0003 of s-001.tar"
    found = first_pixel(data)
    assert found.features[:, 0].tolist() == list(range(9))
    assert found.labels.tolist() == [i % 2 for i in range(9)]
    assert len(open_data(f"{tmp_path}/s-{{000,002}}.tar")) == 6
    assert len(open_data(tmp_path)) == 9
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(data.items.__getitem__, [8, 0, 5] * 20))
    assert again == [png(8), png(0), png(5)] * 20


def test_members_of_an_item_need_not_lie_together(tmp_path):
    path = shard(
        tmp_path / "x.tar",
        {"a/1.PNG": png(1), "b/1.jpeg": png(2), "a/1.cls": "x", "b/1.cls": "y"},
    )
    data = open_data(path)
    assert data.describe(1) == "b/1 of x.tar"
    assert (data.class_names, data.labels.tolist()) == (("x", "y"), [0, 1])
    assert [data.items[i] for i in range(2)] == [png(1), png(2)]


def test_nothing_is_unpacked_and_hidden_members_do_not_count(tmp_path):
    members = three() | {"._0000.png": b"x", ".DS_Store": b"x", "notes": b"x"}
    path = shard(tmp_path / "in" / "x.tar", members)
    outside = shard(tmp_path / "in" / "y.tar", {"../z.png": png(1), "/w.png": png(2)})
    assert len(open_data(path)) == 3
    assert [open_data(outside).items[i] for i in range(2)] == [png(1), png(2)]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "x.tar", "y.tar"]


def test_texts_of_shards(tmp_path):
    path = shard(tmp_path / "x.tar", {"a.txt": "grün", "a.cls": "x", "b.txt": "b"})
    data = open_data(path)
    assert (data.modality, list(data.items)) == ("text", ["grün", "b"])
    assert data.labelled.tolist() == [True, False]
    both = shard(tmp_path / "y.tar", three(txt=lambda i: f"t{i}"))
    assert open_data(both).modality == "image"
    assert list(open_data(both, column="txt").items) == ["t0", "t1", "t2"]


def test_fields_of_json(tmp_path):
    said = {0: {"kind": "a", "who": 1, "n": "x"}, 1: {"kind": None, "who": 2, "n": "y"}}
    said[2] = {"kind": "b", "who": 1, "n": "z"}
    path = shard(tmp_path / "x.tar", three(json=lambda i: json.dumps(said[i])))
    assert open_data(path).class_names == ("0", "1")
    data = open_data(path, label_column="kind", group_column="who", id_column="n")
    assert data.class_names == ("a", "b")
    assert data.labelled.tolist() == [True, False, True]
    assert data.groups.tolist() == [0, 1, 0]
    assert data.describe(1) == "0001 of x.tar (y)"
    with pytest.raises(ValueError, match=r"^label_column: .*no field 'y'.*has kind, w"):
        open_data(path, label_column="y")
    with pytest.raises(ValueError, match=r"^group_column: .*no field 'author'"):
        open_data(path, group_column="author")


def test_labels_are_looked_for_as_in_tables(tmp_path):
    for name, fields in (("x", {"label": "a"}), ("y", {"Label": "a", "w": 1})):
        shard(
            tmp_path / f"{name}.tar",
            {"1.png": png(1), "1.json": json.dumps(fields), "2.png": png(2)},
        )
    found = open_data(tmp_path / "x.tar")
    assert (found.class_names, found.labelled.tolist()) == (("a",), [True, False])
    with pytest.warns(DataWarning, match=r"no column 'label'.*did you mean 'Label'"):
        assert open_data(tmp_path / "y.tar").labels is None
    shard(tmp_path / "z.tar", {"1.png": png(1)})
    assert open_data(tmp_path / "z.tar").labels is None


# -- what is wrong ---------------------------------------------------------------------


def test_a_shard_that_is_missing_is_named(tmp_path):
    for k in (0, 2):
        shard(tmp_path / f"s-{k}.tar", three())
    with pytest.raises(ValueError, match=r"^data: there is no file .*s-1.tar'$"):
        open_data(f"{tmp_path}/s-{{0..2}}.tar")
    with pytest.raises(ValueError, match=r"^data: there is no file .*gone.tar'$"):
        open_data(str(tmp_path / "gone.tar"))
    (tmp_path / "s-0.csv").write_text("text\na\n")
    with pytest.raises(ValueError, match=r"^data: .*several formats, .csv and .tar"):
        open_data(f"{tmp_path}/s-0{{.tar,.csv}}")


def cut(whole, at):
    return whole[:at]


def flipped(whole, at):
    return whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]


DAMAGE = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"not a tar" * 200,
    "zeros": lambda whole: bytes(10240),
    "cut in a header": lambda whole: cut(whole, 1024 + 100),
    "cut in a member": lambda whole: cut(whole, 512 + 20),
    "cut between members": lambda whole: cut(whole, 1024),
    "first header": lambda whole: flipped(whole, 150),
    "a later header": lambda whole: flipped(whole, 1024 + 150),
    "two in one": lambda whole: whole + whole,
    "gzip": lambda whole: __import__("gzip").compress(whole),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_shard_is_named(tmp_path, case):
    shard(tmp_path / "s-0.tar", three())
    path = shard(tmp_path / "s-1.tar", three(3))
    path.write_bytes(DAMAGE[case](path.read_bytes()))
    with pytest.raises(ValueError, match=r"^data: .*s-1.tar'") as error:
        open_data(f"{tmp_path}/s-{{0..1}}.tar")
    assert "\n" not in str(error.value)


def test_a_shard_that_shrinks_is_named_when_it_is_read(tmp_path):
    path = shard(tmp_path / "x.tar", three())
    data = open_data(path)
    path.write_bytes(path.read_bytes()[:700])
    found = first_pixel(data, on_error="skip")
    assert [s["what"] for s in found.provenance["skipped"]] == [
        "0001 of x.tar",
        "0002 of x.tar",
    ]
    assert "ends too early" in found.provenance["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("1.png", png(1)), ("1.png", png(2))], "^data: .*x.tar' holds '1.png' twice"),
        ({"1.cls": "1"}, "^column: .*members cls, of which none is a picture"),
        ({"1.mp4": b"x", "1.cls": "1"}, "^column: .*members mp4, cls"),
        (
            {"1.png": png(1), "1.jpg": png(1)},
            "^column: 1 of x.tar has several .*png, j",
        ),
        ({"notes": b"x"}, "^data: .*x.tar' holds no items"),
        (
            {"1.png": png(1), "1.cls": b"\xff\xfe"},
            "^data: 1 of x.tar: .cls .*not UTF-8",
        ),
    ],
)
def test_members_that_cannot_be_understood_are_named(tmp_path, members, says):
    with pytest.raises(ValueError, match=says):
        open_data(shard(tmp_path / "x.tar", members))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "^data: 1 of x.tar has a .json that is no JSON object"),
        ("[1]", "^data: 1 of x.tar has a .json .*found list"),
        ('{"kind": [1]}', r"^label_column: 1 of x.tar has '\[1\]' in 'kind'"),
        ('{"kind": 0.5}', "^label_column: 1 of x.tar has '0.5' in 'kind'"),
        ('{"kind": "a"}', "^label_column: .*several kinds .*int in 0 .*str in 1 of"),
    ],
)
def test_fields_that_are_no_labels_are_named(tmp_path, content, says):
    members = {"0.png": png(0), "0.json": '{"kind": 1}'}
    path = shard(tmp_path / "x.tar", members | {"1.png": png(1), "1.json": content})
    with pytest.raises(ValueError, match=says):
        open_data(path, label_column="kind")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as stored:
        member = tarfile.TarInfo("1.png")
        member.type, member.linkname = kind, "../secret.png"
        stored.addfile(member)
    with pytest.raises(
        ValueError, match=r"^data: .*x.tar' holds '1.png', which is a l"
    ):
        open_data(tmp_path / "x.tar")


def test_an_item_without_a_picture_is_skipped_or_named(tmp_path):
    path = shard(tmp_path / "x.tar", three() | {"0009.cls": "1"})
    with pytest.raises(
        ValueError, match=r"^data: 0009 of x.tar of 'x' .*no member .png"
    ):
        first_pixel(open_data(path))
    found = first_pixel(open_data(path), on_error="skip")
    assert found.provenance["skipped"][0]["what"] == "0009 of x.tar"


def test_options_that_shards_have_no_use_for(tmp_path):
    path = shard(tmp_path / "x.tar", three())
    with pytest.raises(ValueError, match=r"^split: found 'train', but shards have no"):
        open_data(path, "train")
    with pytest.raises(ValueError, match=r"^column: .*no members .gif .*has png, cls"):
        open_data(path, column="gif")
    for option in ("separator", "encoding"):
        with pytest.raises(ValueError, match=rf"^{option}: found"):
            open_data(path, **{option: ";"})


def test_the_command_reads_shards(tmp_path, capsys):
    for k in range(2):
        shard(tmp_path / f"s-{k}.tar", three(3 * k, json=lambda i: '{"who": "a"}'))
    words = ["extract", "--data", f"{tmp_path}/s-{{0..1}}.tar", "--encoder"]
    words += ["squeezenet", "--out", str(tmp_path / "x.npz"), "--no-cache"]
    if main([*words, "--group-column", "who"]) == 2:  # its package is not installed
        pytest.skip(capsys.readouterr().err)
    assert "6 items, 512 features, 2 classes, 1 groups" in capsys.readouterr().out
    assert main([*words, "--split", "train"]) == 2
    assert capsys.readouterr().err.startswith("tta-jax: split: found 'train'")
