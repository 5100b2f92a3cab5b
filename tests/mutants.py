"""Damage to files, always the same for one seed: bytes changed, and inside a zip archive the XML of its parts."""

from __future__ import annotations

import copy
import io
import re
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from lxml import etree

sys.path.append(str(Path(__file__).parent))
from made_files import parts_of, zipped

if TYPE_CHECKING:
    import random

ODD = ("", "0", "-1", "1", "99999999999", "1e9", "x", "NaN", "true", "9" * 400, "A1:XFD1048576", "../../x", "字")
_STREAM = re.compile(rb"(/FlateDecode.{0,200}?stream\r?\n)(.*?)(\r?\nendstream)", re.DOTALL)
_NUMBER = re.compile(rb"-?\d+")
_TOKEN = re.compile(rb"[^\s<>\"'{}\[\](),:;|=]+")


def mutated(content: bytes, random_: random.Random) -> bytes:
    """`content` with a few bytes changed, cut, doubled or moved."""
    made = bytearray(content)
    for _ in range(random_.randint(1, 6)):
        at, length = random_.randrange(len(made) + 1), random_.randint(1, 40)
        change = random_.randrange(5)
        if change == 0 and made:
            made[at % len(made)] = random_.randrange(256)
        elif change == 1:
            del made[at : at + length]
        elif change == 2:
            made[at:at] = made[at : at + length] * random_.randint(1, 50)
        elif change == 3:
            made[at:at] = random_.randbytes(length)
        else:
            other = random_.randrange(len(made) + 1)
            made[at : at + length] = made[other : other + length]
    return bytes(made)


def mutated_file(name: str, content: bytes, random_: random.Random) -> bytes:
    """As `mutated`; of a zip archive mostly one of its parts, so that what is inside is reached."""
    if not zipfile.is_zipfile(io.BytesIO(content)) or random_.random() < 0.2:
        return mutated(content, random_)
    parts = parts_of(content)
    for part in random_.sample(sorted(parts), min(3, len(parts))):
        is_tree = parts[part].lstrip().startswith(b"<") and random_.random() < 0.8
        parts[part] = mutated_tree(parts[part], random_) if is_tree else mutated(parts[part], random_)
    return zipped(parts)


def mutated_tree(content: bytes, random_: random.Random) -> bytes:
    """`content`, which is XML, with elements lost, doubled or moved and odd values in attributes and texts."""
    root = etree.fromstring(content)
    for _ in range(random_.randint(1, 6)):
        nodes = [node for node in root.iter() if isinstance(node.tag, str) and node is not root]
        if not nodes:
            break
        node, other = random_.choice(nodes), random_.choice([root, *nodes])
        change = random_.randrange(5)
        if change == 0:
            node.getparent().remove(node)
        elif change == 1:
            other.append(copy.deepcopy(node))
        elif change == 2 and node.attrib:
            node.set(random_.choice(sorted(node.attrib)), random_.choice(ODD))
        elif change == 3 and node.attrib:
            del node.attrib[random_.choice(sorted(node.attrib))]
        else:
            node.text = random_.choice(ODD)
    return etree.tostring(root)


def mutated_words(content: bytes, random_: random.Random) -> bytes:
    """`content`, which is text, with words and numbers replaced, and stretches of it repeated many times."""
    made = content
    for _ in range(random_.randint(1, 4)):
        tokens = list(_TOKEN.finditer(made))
        if not tokens:
            break
        one, other = random_.choice(tokens), random_.choice(tokens)
        change = random_.randrange(4)
        if change == 0:
            made = made[: one.start()] + random_.choice(ODD).encode() + made[one.end() :]
        elif change == 1:
            made = made[: one.start()] + other.group() + made[one.end() :]
        elif change == 2:
            low, high = sorted((one.start(), other.end()))
            made = made[:low] + made[low:high][:200] * random_.choice((2, 50, 2000)) + made[high:]
        else:
            nested = random_.choice((b"[", b"{", b"(", b"<div>", b"> ", b"- ", b"#", b"|", b"\n", b'"', b"*"))
            made = made[: one.start()] + nested * random_.choice((3, 300, 30_000)) + made[one.start() :]
    return made


def mutated_pdf(content: bytes, random_: random.Random) -> bytes:
    """`content`, a PDF, with numbers and names replaced, also inside its compressed streams."""
    made = content
    for _ in range(random_.randint(1, 5)):
        streams = list(_STREAM.finditer(made))
        if streams and random_.random() < 0.5:
            stream = random_.choice(streams)
            try:
                inside = zlib.decompress(stream[2])
            except zlib.error:
                continue
            packed = zlib.compress(mutated_words(inside, random_)[:2_000_000])
            made = made[: stream.start(2)] + packed + made[stream.end(2) :]
            continue
        pattern = _NUMBER if random_.random() < 0.7 else re.compile(rb"/[A-Za-z]+")
        found = list(pattern.finditer(made))
        if found:
            one, other = random_.choice(found), random_.choice(found)
            value = other.group() if random_.random() < 0.6 else random_.choice(ODD[:10]).encode()
            made = made[: one.start()] + value + made[one.end() :]
    return made if random_.random() < 0.8 else mutated(made, random_)
