"""A model that follows a script, behind the three interfaces that assistants speak: Anthropic, OpenAI and Gemini.

It calls one planned tool after another and remembers what came back, as the assistant's model would have seen it. It
listens on loopback only and knows no key.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST_TURNS = 60
"""Of one conversation, should the models never be loaded."""


@dataclass
class Result:
    """What came back from one call: texts, and pictures in base64."""

    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


@dataclass
class Script:
    """The calls to make, in order, and what has come back.

    Attributes:
        prefix: what the assistant puts before the names of tools.
        listed: names of our tools in the assistant's last request.
        results: of the last request, oldest first.
    """

    calls: list[tuple[str, dict[str, Any]]]
    loading: str
    prefix: str
    listed: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def next(self) -> tuple[str, dict[str, Any]] | None:
        """The call to make now: the one before again while the models are loading."""
        kept = self.kept()
        return self.calls[len(kept)] if len(kept) < len(self.calls) and len(self.results) < MOST_TURNS else None

    def kept(self) -> list[Result]:
        """One result per planned call: those that only said that the models are loading are left out."""
        return [one for one in self.results if self.loading not in " ".join(one.texts)]


def anthropic(script: Script, path: str, request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`POST /v1/messages`: events of one streamed message."""
    script.listed = _ours(script, [tool.get("name", "") for tool in request.get("tools", [])])
    blocks = [b for m in request["messages"] if isinstance(m["content"], list) for b in m["content"]]
    found = []
    for block in (block for block in blocks if block["type"] == "tool_result"):
        parts = block.get("content", "")
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        texts = [part["text"] for part in parts if part["type"] == "text"]
        found.append(Result(texts, [part["source"]["data"] for part in parts if part["type"] == "image"]))
    call = _planned(script, found)
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "stub", "content": [], "usage": usage}
    yield "message_start", {"message": {**message, "stop_reason": None, "stop_sequence": None}}
    if call:
        name, arguments = call
        block = {"type": "tool_use", "id": f"toolu_{len(found)}", "name": script.prefix + name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(arguments)}
    else:
        block, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": "done"}
    yield "content_block_start", {"index": 0, "content_block": block}
    yield "content_block_delta", {"index": 0, "delta": delta}
    yield "content_block_stop", {"index": 0}
    stop = {"stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None}
    yield "message_delta", {"delta": stop, "usage": {"output_tokens": 1}}
    yield "message_stop", {}


def openai(script: Script, path: str, request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`POST /v1/responses`: events of one streamed response. Tools may stand in a namespace of their own."""
    names = []
    for tool in request.get("tools", []):
        inner = tool.get("tools", []) if tool.get("type") == "namespace" else [tool]
        front = f"{tool['name']}__" if tool.get("type") == "namespace" else ""
        names += [front + one.get("name", "") for one in inner]
    script.listed = _ours(script, names)
    found = []
    for back in (one for one in request["input"] if one.get("type") == "function_call_output"):
        parts = back["output"]
        parts = [{"type": "input_text", "text": parts}] if isinstance(parts, str) else parts
        texts = [part["text"] for part in parts if "text" in part]
        images = [part["image_url"].partition("base64,")[2] for part in parts if part.get("type") == "input_image"]
        found.append(Result(texts, images))
    call = _planned(script, found)
    yield "response.created", {"response": {"id": "resp_1"}}
    item: dict[str, Any]
    if call:
        name, arguments = call
        item = {"type": "function_call", "id": f"fc_{len(found)}", "call_id": f"call_{len(found)}", "name": name}
        item |= {"namespace": script.prefix.removesuffix("__"), "arguments": json.dumps(arguments)}
    else:
        text = {"type": "output_text", "text": "done", "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [text]}
    yield "response.output_item.done", {"output_index": 0, "item": item}
    tokens = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    yield "response.completed", {"response": {"id": "resp_1", "output": [item], "usage": tokens}}


def gemini(script: Script, path: str, request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`POST …:streamGenerateContent`: one chunk."""
    declared = [one for tool in request.get("tools", []) for one in tool.get("functionDeclarations", [])]
    script.listed = _ours(script, [one["name"] for one in declared])
    found: list[Result] = []
    for part in [part for content in request["contents"] for part in content.get("parts", [])]:
        if "functionResponse" in part:
            answer = part["functionResponse"]
            nested = [one["inlineData"]["data"] for one in answer.get("parts", []) if "inlineData" in one]
            found.append(Result([str(answer["response"].get("output") or answer["response"])], nested))
        elif "inlineData" in part and found:
            found[-1].images.append(part["inlineData"]["data"])
    call = _planned(script, found)
    parts = [{"functionCall": {"name": script.prefix + call[0], "args": call[1]}}] if call else [{"text": "done"}]
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
    yield "", {"candidates": [candidate], "usageMetadata": usage}


DIALECTS = {"anthropic": anthropic, "openai": openai, "gemini": gemini}


def _ours(script: Script, names: list[str]) -> list[str]:
    """Names of our tools without the prefix; what was listed before where a side request has none."""
    return [name.removeprefix(script.prefix) for name in names if name.startswith(script.prefix)] or script.listed


def _planned(script: Script, found: list[Result]) -> tuple[str, dict[str, Any]] | None:
    """The next call; none for a side request (a title, a summary), which shows fewer results than the conversation."""
    if len(found) < len(script.results):
        return None
    script.results = found
    return script.next() if script.listed else None


class Stub:
    """The server; use it as a context manager. `address` has no path."""

    def __init__(self, dialect: str, script: Script) -> None:
        answer = DIALECTS[dialect]
        turn = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                with turn:
                    script.requests.append(self.path)
                    if re.search(r"count_?tokens", self.path, re.I):
                        return self.said("application/json", json.dumps({"input_tokens": 1, "totalTokens": 1}))
                    events = [*answer(script, self.path, json.loads(body))]
                if dialect == "gemini" and "stream" not in self.path:
                    return self.said("application/json", json.dumps(events[0][1]))
                self.said("text/event-stream", "".join(_event(name, data) for name, data in events))

            def do_GET(self) -> None:
                self.said("application/json", json.dumps({"data": [], "models": []}))

            def said(self, kind: str, text: str) -> None:
                content = text.encode()
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Nothing: what was asked stands in the script."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Stub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _event(name: str, data: dict[str, Any]) -> str:
    kind = {"type": name} if name else {}
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps({**kind, **data})}\n\n"
