"""Changes of files: bits, bytes, pieces, fields of lengths, tokens of text, members of
archives.
"""

import io
import re
import zipfile

_TOKEN = re.compile(rb'"[^"\n]{0,40}"|-?\d+(?:\.\d+)?|true|false|null|[{}\[\],:]')
_TEXTS = (
    *(b"null", b"true", b"-1", b"1e400", b"NaN", b"0", b"99999999999999999999", b"2.5"),
    *(b"[]", b"{}", b'"x"', b'"\\u0000\\u001b[31m"', b'"\\ud800"', b"'", b"\xff", b""),
    *(b"[" * 3000, b'{"a":' * 300, b"1" * 5000, b'"os.system"', b'"..\\/..\\/x"'),
)
_NUMBERS = (0, 1, 2, -1, -2, 2**15, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1)


def mutated(data, rng, others=()):
    """Other bytes than `data`, changed up to three times, and whether an archive was
    made anew, with checksums of the changed contents.

    Args:
      data: of a file.
      rng: a NumPy generator.
      others: bytes of other files, for splices.
    """
    if rng.random() < 0.3 and (again := _archive(data, rng)) is not None:
        return again, True
    changed = data
    while changed == data:
        for _ in range(rng.integers(1, 4)):
            changed = _CHANGES[rng.integers(len(_CHANGES))](changed, rng, others)
    return changed, False


def _place(data, rng):
    """A position, at the beginning or the end in half of the cases."""
    size, where = len(data), rng.random()
    if where < 0.25:
        return int(rng.integers(min(size, 300)))
    if where < 0.5:
        return size - 1 - int(rng.integers(min(size, 1200)))
    return int(rng.integers(size))


def _bits(data, rng, _):
    out = bytearray(data or b"\0")
    for _ in range(rng.integers(1, 9)):
        out[_place(out, rng)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _bytes(data, rng, _):
    out = bytearray(data or b"\0")
    for _ in range(rng.integers(1, 5)):
        out[_place(out, rng)] = int(rng.integers(256))
    return bytes(out)


def _cut(data, rng, _):
    return data[: _place(data, rng)] if data else b"\0"


def _twice(data, rng, _):
    at, size = (int(rng.integers(len(data) + 1)), int(rng.integers(1, 400)))
    return data[: at + size] + data[at:]


def _out(data, rng, _):
    at, size = (int(rng.integers(len(data) + 1)), int(rng.integers(1, 200)))
    return data[:at] + data[at + size :]


def _splice(data, rng, others):
    other = others[rng.integers(len(others))] if len(others) else data
    size = int(rng.integers(1, 400))
    begin, at = int(rng.integers(len(other) + 1)), int(rng.integers(len(data) + 1))
    piece = other[begin : begin + size]
    return data[:at] + piece + data[at + len(piece) :]


def _field(data, rng, _):
    """A whole number of 1 to 8 bytes, of either order."""
    if len(data) < 8:
        return data + b"\0"
    width = int(rng.choice([1, 2, 4, 8]))
    at = min(_place(data, rng), len(data) - width)
    order = ("little", "big")[rng.integers(2)]
    now = int.from_bytes(data[at : at + width], order)
    value = (
        _NUMBERS[rng.integers(len(_NUMBERS))]
        if rng.random() < 0.6
        else now + int(rng.integers(-8, 9))
    )
    piece = (value % (1 << 8 * width)).to_bytes(width, order)
    return data[:at] + piece + data[at + width :]


def _token(data, rng, _):
    found = list(_TOKEN.finditer(data[:200_000]))
    if not found:
        return _bytes(data, rng, _)
    match = found[rng.integers(len(found))]
    text = _TEXTS[rng.integers(len(_TEXTS))]
    if rng.random() < 0.3:
        text = found[rng.integers(len(found))][0]
    if rng.random() < 0.5:  # of the same length, so that nothing else moves
        text = text[: len(match[0])].ljust(len(match[0]))
    return data[: match.start()] + text + data[match.end() :]


_CHANGES = (_bits, _bytes, _cut, _twice, _out, _splice, _field, _field, _token, _token)


def _archive(data, rng):
    """A zip with a member changed, its checksum that of the change; None for what is no
    zip.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as stored:
            members = [(info.filename, stored.read(info)) for info in stored.infolist()]
    except zipfile.BadZipFile:
        return None
    which = int(rng.integers(len(members)))
    name, content = members[which]
    what = rng.random()
    if what < 0.1:
        name = ("../x.npy", "features.npy", "x", "weight.npy", "\x1b[31m.npy")[
            rng.integers(5)
        ]
    elif what < 0.2:
        content = members[rng.integers(len(members))][1]
    else:
        content = mutated(content, rng)[0]
    members[which] = (name, content)
    stream, how = (
        io.BytesIO(),
        int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])),
    )
    with zipfile.ZipFile(stream, "w", how) as made:
        for number, (name, content) in enumerate(members):
            if name not in [other for other, _ in members[:number]]:
                made.writestr(name, content)
    return stream.getvalue()
