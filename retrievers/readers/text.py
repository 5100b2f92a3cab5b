"""Plain text of any common encoding, and the decoding that the other text formats share."""

from __future__ import annotations

import codecs
import re
from typing import BinaryIO

import regex

from .base import Document, Limits, Reader, Section, clean, file_name, unreadable

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CANDIDATES = ["cp1252", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1250", "cp1251", "koi8_r", "cp1253"]
_SAMPLE = 65_536
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_MEANINGLESS = regex.compile(r"[\p{Cn}\p{Co}\uFFFD]")
_BAD_SHARE = 0.02


class TextReader(Reader):
    """One section: the whole text."""

    mimes = frozenset({"text/plain"})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        text, stripped = read_text(file, uri)
        return Document(uri, file_name(uri), mime, (Section(text),), {"stripped": stripped})


def read_text(file: BinaryIO, uri: str, declared: str | None = None) -> tuple[str, int]:
    """The cleaned text of `file` and how many invisible characters `clean` removed.

    Raises:
        UnreadableFile: no encoding fits, or nothing is left to read.
    """
    data = file.read()
    encoding = encoding_of(data, declared)
    if encoding is None:
        raise unreadable(uri, "is not text in any encoding known here", "Save it as UTF-8.")
    decoded = data.decode(encoding, errors="replace")
    if len(_MEANINGLESS.findall(decoded, 0, _SAMPLE)) > 0.05 * min(len(decoded), _SAMPLE):
        raise unreadable(uri, f"looks like {encoding} but is not text", "Give a file of a readable kind.")
    text, stripped = clean(decoded)
    if not text.strip():
        raise unreadable(uri, "has no text", "Remove it, or give a file with content.")
    return text, stripped


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are text: no zero bytes outside UTF-16 and UTF-32, few control bytes."""
    if _marked(head) or _wide(head):
        return True
    return b"\0" not in head and len(_CONTROL.findall(head)) <= _BAD_SHARE * len(head)


def encoding_of(data: bytes, declared: str | None = None) -> str | None:
    """The encoding of `data`: by its mark, as UTF-8, as `declared` (by HTML), as wide characters, by statistics."""
    if marked := _marked(data):
        return marked
    if _is_utf8(data):
        return "utf-8"
    if declared and _decodes(data, declared):
        return declared
    return _wide(data) or _by_statistics(data)


def _marked(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def _is_utf8(data: bytes) -> bool:
    """Whether it is UTF-8; a few wrong bytes in an otherwise valid text do not make it something else."""
    if _decodes(data, "utf-8"):
        return True
    text = _sample(data).decode("utf-8", errors="replace")
    return text.count("\ufffd") <= _BAD_SHARE * sum(c > "\x7f" for c in text)


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: zero bytes, all but a few of them in every other place."""
    sample = data[: _SAMPLE & ~1]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    few, half = 0.01 * len(sample), 0.2 * len(sample)
    if odd >= half and even <= few:
        return "utf-16-le"
    return "utf-16-be" if even >= half and odd <= few else None


def _by_statistics(data: bytes) -> str | None:
    sample = _sample(data)
    if b"\0" in sample:
        return None
    runs = [len(run) for run in _HIGH_BYTES.findall(sample)]
    if runs.count(1) >= 0.9 * len(runs):
        return "cp1252"  # an accent here and there: western, whatever the statistics of so few say
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=_CANDIDATES).best()
    if best is None:
        return None
    in_pairs = min(runs) >= 4 and all(run % 2 == 0 for run in runs)
    chinese = best.encoding == "big5" or (in_pairs and best.encoding.startswith("cp125"))
    return "gb18030" if chinese and _decodes(sample, "gb2312") else best.encoding


def _sample(data: bytes) -> bytes:
    """Whole lines around the first byte above ASCII."""
    first = _HIGH_BYTES.search(data)
    middle = first.start() if first else 0
    start = data.rfind(b"\n", 0, middle) + 1
    end = data.find(b"\n", middle + _SAMPLE)
    part = data[start : end if end >= 0 else len(data)]
    return part if len(part) <= 4 * _SAMPLE else part[: 4 * _SAMPLE]
