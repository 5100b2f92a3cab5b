"""Arguments for tools, drawn from their own schemas: what they allow, and the same with something wrong in it."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st

WORDS = st.sampled_from(
    ["budget", "garden", "berlin", "海草", "120", "p.2", "*", '"', "\u202e", "\x00", "../..", "%s", "🖨️"]
)
TEXTS = st.one_of(st.text(max_size=40), WORDS, st.lists(WORDS, max_size=6).map(" ".join))
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**20), 10**20),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXTS,
        st.sampled_from(["", " ", "/etc/passwd", "../../etc", "C:\\", "null", "NaN", "[1", "{}", "\ud7ff", "x" * 9000]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


def of_schema(schema: dict[str, Any], ids: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Values that `schema` allows (the parts of JSON Schema that our tools use); `ids` for what looks like an id."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "integer":
        low = schema.get("minimum", -(10**6))
        return st.integers(low, schema.get("maximum", low + 10**6))
    if kind == "boolean":
        return st.booleans()
    if kind == "string":
        least, most = schema.get("minLength", 0), min(schema.get("maxLength", 60), 60)
        return st.one_of(st.text(min_size=least, max_size=most), TEXTS.filter(lambda text: least <= len(text)), ids)
    if kind == "array":
        inner = of_schema(schema.get("items", {}), ids)
        return st.lists(inner, min_size=schema.get("minItems", 0), max_size=min(schema.get("maxItems", 4), 4))
    if kind == "object" and "properties" in schema:
        required = set(schema.get("required", ()))
        parts = {name: of_schema(part, ids) for name, part in schema["properties"].items()}
        return st.fixed_dictionaries(
            {name: part for name, part in parts.items() if name in required},
            optional={name: part for name, part in parts.items() if name not in required},
        )
    return st.dictionaries(TEXTS, JUNK, max_size=3) if kind == "object" else JUNK


@st.composite
def arguments(draw: st.DrawFn, schema: dict[str, Any], ids: st.SearchStrategy[str]) -> dict[str, Any]:
    """Arguments of one call: right ones, or right ones with a part replaced, added, removed or written as JSON."""
    made: dict[str, Any] = draw(of_schema(schema, ids))
    for _ in range(draw(st.integers(0, 2))):
        names = sorted({*made, *schema["properties"], "surprise"})
        name = draw(st.sampled_from(names))
        change = draw(st.sampled_from(["junk", "drop", "json"]))
        if change == "drop":
            made.pop(name, None)
        else:
            value = draw(JUNK) if change == "junk" or name not in made else json.dumps(made[name])
            made[name] = value
    return made


LEAKS = re.compile(r"Traceback|File \"|\.py\b|site-packages|pydantic|sqlite3|errors\.|0x[0-9a-f]{8,}")


def fault_in(answer: Any, private: list[str], given: dict[str, Any]) -> str | None:
    """What is wrong with an answer: a crash, a traceback, or a path of this machine; None when nothing is.

    Args:
        given: the arguments of the call: an error may say back what stands in them.
    """
    text = "".join(block.text for block in answer.content if block.type == "text")
    whole = f"{text} {json.dumps(answer.meta or {}, ensure_ascii=False)}"
    if answer.is_error and ("failed inside the server" in text or not text):
        return f"crash: {text}"
    leaks = {found.group() for found in LEAKS.finditer(text) if answer.is_error} - set(LEAKS.findall(repr(given)))
    if leaks:
        return f"leak: {', '.join(sorted(leaks))} in {text[:300]}"
    return next((f"path: {place} in {whole[:300]}" for place in private if place in whole), None)
