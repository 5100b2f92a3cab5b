"""Mail messages (.eml): subject, the headers that a reader is shown, the text; attachments are named and not opened.

Of a message in plain text and HTML the plain text is read, unless it is empty. Headers are decoded one by one, so that
a damaged one is shown as it stands. `attachments` in the document's `meta` counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import policy
from email.header import decode_header, make_header
from email.parser import BytesParser
from typing import TYPE_CHECKING, BinaryIO, cast

from ._rows import one_cell
from .base import Document, Limits, Reader, Section, clean, file_name, parsing, unreadable
from .html import sections_of
from .text import encoding_of

if TYPE_CHECKING:
    from email.message import Message

MAIL = "message/rfc822"

_SHOWN = ("From", "To", "Cc", "Date")
_LONGEST_HEADER = 2000
_MOST_PARTS = 1000
_FIELD = re.compile(r"[!-9;-~]+[ \t]*:")
_KNOWN = re.compile(
    r"^(from|to|cc|date|subject|message-id|mime-version|received|return-path|reply-to|delivered-to|content-type):", re.I
)


def is_mail(head: str) -> bool:
    """Whether a text begins with the headers of a message: `From:` and two others, and nothing else before them."""
    known: set[str] = set()
    for line in head.split("\n"):
        if not line.strip():
            break
        if line[0] in " \t" and known:
            continue
        if not _FIELD.match(line):
            return False
        if match := _KNOWN.match(line):
            known.add(match[1].lower())
    return "from" in known and len(known) >= 3


class MailReader(Reader):
    """One section: the message under its subject; those of its HTML where it has no plain text."""

    mimes = frozenset({MAIL})

    def read(self, file: BinaryIO, uri: str, mime: str, limits: Limits) -> Document:
        with parsing(uri, "mail message"):
            message = BytesParser(policy=policy.compat32).parse(file)
            letter = _Letter(message, uri, limits)
            sections = tuple(letter.sections())
        if not letter.says_something:
            raise unreadable(uri, "has neither subject nor text", "Save the message with its content.")
        meta = {"stripped": letter.stripped, "attachments": len(letter.attachments)}
        return Document(uri, letter.subject or file_name(uri), mime, sections, meta)


class _Letter:
    def __init__(self, message: Message, uri: str, limits: Limits) -> None:
        self._uri, self._limits = uri, limits
        self.stripped = 0
        self.subject = self._header(message, "Subject")
        self._headers = [(name, self._header(message, name)) for name in _SHOWN]
        self._plain: list[Message] = []
        self._html: list[Message] = []
        self.attachments: list[str] = []
        for part in _leaves(message):
            self._sort(part)
        self.says_something = bool(self.subject or self.attachments)

    def sections(self) -> Iterator[Section]:
        head = [f"# {self.subject}\n"] if self.subject else []
        head += [f"{name}: {text}" for name, text in self._headers if text]
        body = "\n\n".join(filter(None, (self._decoded(part).strip() for part in self._plain)))
        pages: tuple[Section, ...] = ()
        if not body:
            for part in self._html:
                _, found, more = sections_of(self._decoded(part), self._uri, self._limits)
                pages += found
                self.stripped += more
        self.says_something = self.says_something or bool(body or pages)
        named = f"Attachments (not read): {'; '.join(self.attachments)}" if self.attachments else ""
        text = "\n\n".join(filter(None, ("\n".join(head), body, "" if pages else named)))
        titles = (self.subject,) if self.subject else ()
        yield Section(text + "\n\n", headings=titles)
        for page in pages:
            yield Section(page.text.rstrip("\n") + "\n\n", headings=(*titles, *page.headings))
        if pages and named:
            yield Section(named, headings=titles)

    def _sort(self, part: Message) -> None:
        """Put a part of the message where it belongs: text, HTML, or the list of attachments."""
        kind = part.get_content_type()
        name = self._name(part)
        is_text = kind in ("text/plain", "text/html") and not name and part.get_content_disposition() != "attachment"
        if is_text:
            (self._plain if kind == "text/plain" else self._html).append(part)
        elif name or not kind.startswith("multipart/"):
            self.attachments.append(f"{name or 'unnamed'} ({kind})")

    def _name(self, part: Message) -> str:
        return self._clean(_decoded_header(part.get_filename() or ""))

    def _header(self, message: Message, name: str) -> str:
        return self._clean(_decoded_header(str(message.get(name, ""))[:_LONGEST_HEADER]))

    def _clean(self, text: str) -> str:
        line, stripped = one_cell(text)
        self.stripped += stripped
        return line

    def _decoded(self, part: Message) -> str:
        """The text of a part, in the encoding that it states or that its bytes show."""
        data = part.get_payload(decode=True)
        if not isinstance(data, bytes):
            return ""
        encoding = encoding_of(data, part.get_content_charset()) or "latin-1"
        text, stripped = clean(data.decode(encoding, errors="replace"))
        self.stripped += stripped
        return text


def _decoded_header(text: str) -> str:
    try:
        return str(make_header(decode_header(text)))
    except (ValueError, LookupError):  # damaged: as it stands
        return text


def _leaves(message: Message) -> Iterator[Message]:
    """The parts that hold something themselves, in order; a message inside is one of them and is not opened."""
    stack, count = [message], 0
    while stack and count < _MOST_PARTS:
        part = stack.pop()
        count += 1
        if part.get_content_maintype() == "multipart" and part.is_multipart():
            stack += reversed(cast("list[Message]", part.get_payload()))
        else:
            yield part
