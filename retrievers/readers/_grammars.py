"""Where the definitions of a source file are, found by tree-sitter in a process of its own.

A file of a few kilobytes can be written so that a grammar takes gigabytes to parse it, in one step that cannot be
stopped, and ends the process when there are none. So this file is run as a program: it takes requests on its standard
input and answers on its standard output, holds itself to `MEMORY` bytes, and may die. It knows nothing of the package.

Request: a line of JSON `{"mime", "size"}`, then `size` bytes of UTF-8. Answer: a line of JSON, null if the bytes are
not mostly in that language, else a list of `[start, end, title, is_function]`, offsets in bytes, outer before inner.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib import import_module
from typing import Any, BinaryIO

MEMORY = 1_000_000_000
_STEPS = 2000  # of about 100 operations each, for any file
_STEPS_PER_BYTE = 0.25  # several times what sound code takes; error recovery can take the square of it
_MOST_WRONG = 0.2  # of the bytes of a file
_LONGEST_TITLE = 120

_C = """
(function_definition) @function
(struct_specifier body: (_)) @type (union_specifier body: (_)) @type (enum_specifier body: (_)) @type
(type_definition type: (struct_specifier body: (_))) @type
(type_definition type: (union_specifier body: (_))) @type
(type_definition type: (enum_specifier body: (_))) @type
"""
_JAVASCRIPT = """
(class_declaration) @type
(function_declaration) @function (generator_function_declaration) @function (method_definition) @function
(variable_declarator value: (arrow_function)) @function
(variable_declarator value: (function_expression)) @function
(variable_declarator value: (class)) @type
"""
_TYPESCRIPT = f"""{_JAVASCRIPT}
(abstract_class_declaration) @type (interface_declaration) @type (enum_declaration) @type
(type_alias_declaration) @type (internal_module) @type (module) @type
"""
LANGUAGES = {
    "text/x-python": ("tree_sitter_python", "language", "(class_definition) @type (function_definition) @function"),
    "text/javascript": ("tree_sitter_javascript", "language", _JAVASCRIPT),
    "text/x-typescript": ("tree_sitter_typescript", "language_typescript", _TYPESCRIPT),
    "text/x-tsx": ("tree_sitter_typescript", "language_tsx", _TYPESCRIPT),
    "text/x-java": (
        "tree_sitter_java",
        "language",
        """(class_declaration) @type (interface_declaration) @type (enum_declaration) @type (record_declaration) @type
        (annotation_type_declaration) @type (method_declaration) @function (constructor_declaration) @function
        (compact_constructor_declaration) @function""",
    ),
    "text/x-go": (
        "tree_sitter_go",
        "language",
        "(function_declaration) @function (method_declaration) @function (type_spec) @type (type_alias) @type",
    ),
    "text/x-rust": (
        "tree_sitter_rust",
        "language",
        """(function_item) @function (macro_definition) @function (struct_item) @type (enum_item) @type
        (union_item) @type (trait_item) @type (impl_item) @type (mod_item body: (_)) @type""",
    ),
    "text/x-c": ("tree_sitter_c", "language", _C),
    "text/x-c++": (
        "tree_sitter_cpp",
        "language",
        f"{_C} (class_specifier body: (_)) @type (namespace_definition) @type (concept_definition) @type",
    ),
}

_AROUND = frozenset(
    "decorated_definition export_statement template_declaration lexical_declaration variable_declaration "
    "type_declaration ambient_declaration expression_statement type_definition declaration field_declaration".split()
)
_ABOVE = ("comment", "attribute", "decorator", "annotation")


def definitions(mime: str, source: bytes) -> list[tuple[int, int, str, bool]] | None:
    """The definitions in `source`, as in the module's docstring; None if it is not mostly in its language."""
    from tree_sitter import Parser, QueryCursor

    language, query = _language(mime)
    most = _STEPS + int(_STEPS_PER_BYTE * len(source))
    steps = 0

    def stop(offset: int, has_error: bool) -> bool:
        nonlocal steps
        steps += 1
        return steps > most

    try:
        tree = Parser(language).parse(lambda offset, point: source[offset : offset + 65_536], progress_callback=stop)
    except ValueError:  # stopped
        return None
    if _wrong_bytes(tree.root_node) > _MOST_WRONG * len(source):
        return None
    found = QueryCursor(query).captures(tree.root_node)
    named = []
    for kind in ("type", "function"):
        for node in found.get(kind, []):
            title = _title(node)
            if title:
                named.append((*_extent(node, source), title, kind == "function"))
    return sorted(set(named), key=lambda one: (one[0], -one[1]))


@cache
def _language(mime: str) -> tuple[Any, Any]:
    from tree_sitter import Language, Query

    package, name, patterns = LANGUAGES[mime]
    language = Language(getattr(import_module(package), name)())
    return language, Query(language, patterns)


def _wrong_bytes(root: Any) -> int:
    """How many bytes the grammar has no place for."""
    total, stack = 0, [root]
    while stack:
        node = stack.pop()
        if node.is_error:
            total += node.end_byte - node.start_byte
        elif node.has_error:
            stack += node.children
    return total


def _title(node: Any) -> str:
    """What a definition is called; empty for one without a name."""
    if node.type == "impl_item":
        body = node.child_by_field_name("body")
        text = node.text[: body.start_byte - node.start_byte] if body else node.text
    elif node.type in ("function_definition", "type_definition") and node.child_by_field_name("declarator"):
        text = _declared(node.child_by_field_name("declarator")).text
    else:
        name = node.child_by_field_name("name")
        text = name.text if name else b""
    title = " ".join(text.decode("utf-8", "replace").split())
    if node.type == "method_declaration" and (receiver := node.child_by_field_name("receiver")):
        kind = receiver.text.decode("utf-8", "replace").strip("() ").split(" ")[-1].lstrip("*").partition("[")[0]
        title = f"{kind}.{title}"
    return title[:_LONGEST_TITLE]


def _declared(node: Any) -> Any:
    """The name inside a declarator of C: that of `*f(int)` is `f`."""
    while True:
        inner = node.child_by_field_name("declarator")
        if inner is None and node.type in ("reference_declarator", "parenthesized_declarator"):
            inner = next((child for child in node.named_children if child.type.endswith("declarator")), None)
            inner = inner or next(iter(node.named_children), None)
        if inner is None:
            return node
        node = inner


def _extent(node: Any, source: bytes) -> tuple[int, int]:
    """From the comments and decorators above a definition to the end of its last line, in bytes."""
    while (parent := node.parent) and parent.type in _AROUND and len(_parts(parent)) == 1:
        node = parent
    start, before = node.start_byte, node.prev_sibling
    while before and any(kind in before.type for kind in _ABOVE):
        gap = source[before.end_byte : start]
        if (
            gap.strip()
            or gap.count(b"\n") > 1
            or source[_line_start(source, before.start_byte) : before.start_byte].strip()
        ):
            break
        start, before = before.start_byte, before.prev_sibling
    line = _line_start(source, start)
    if not source[line:start].strip():
        start = line
    end = source.find(b"\n", node.end_byte)
    end = len(source) if end < 0 else end + 1
    return start, end if not source[node.end_byte : end].strip(b" \t\r\n;,") else node.end_byte


def _parts(node: Any) -> list[Any]:
    """What a node around a definition holds besides comments and decorators."""
    plain = ("type_parameters", "template_parameter_list", "requires_clause", "storage_class_specifier")
    return [
        child
        for child in node.named_children
        if child.type not in plain
        and not any(kind in child.type for kind in _ABOVE)
        and not child.type.endswith(("identifier", "qualifier"))
    ]


def _line_start(source: bytes, position: int) -> int:
    return source.rfind(b"\n", 0, position) + 1


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on this system: the other process still limits the time
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while line := requests.readline():
        request = json.loads(line)
        found = definitions(request["mime"], requests.read(request["size"]))
        answers.write(json.dumps(found).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _limit_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
