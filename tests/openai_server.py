"""A small OpenAI-compatible server on loopback: a language model behind it, and faults to order."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from triptych.retrievers.lm_transformers import TransformersLM

Fault = Callable[["Handler"], None]
"""What is done to one request instead of answering it."""


@dataclass
class Served:
    """What came in, and what goes wrong.

    Attributes:
        faults: one is used up by each request; then all is well.
        lacks: of `logits`, `logprobs`, `images`, `begun`: refused with status 400, or left out of the answer.
        most, at_once: requests under way, at most and now.
    """

    lm: TransformersLM
    url: str = ""
    faults: deque[Fault] = field(default_factory=deque)
    lacks: set[str] = field(default_factory=set)
    limit: str = "max_tokens"
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    delay_s: float = 0.0
    at_once: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.served.lock:
            self.served.requests.append((self.path, dict(self.headers), body))
            self.served.times.append(time.monotonic())
            fault = self.served.faults.popleft() if self.served.faults else None
            self.served.at_once += 1
            self.served.most = max(self.served.most, self.served.at_once)
        time.sleep(self.served.delay_s)
        with self.served.lock:
            self.served.at_once -= 1
        if fault:
            fault(self)
        elif self.path == "/v1/chat/completions":
            self.chat(body)
        elif self.path == "/v1/completions":
            self.echo(body)
        elif self.path == "/v1/embeddings":
            self.embed(body)
        else:
            self.refuse(404, "Not found.")

    def chat(self, body: dict[str, Any]) -> None:
        served, lm = self.served, self.served.lm
        if served.limit not in body:
            return self.refuse(400, f"Unsupported parameter: use '{served.limit}' instead.")
        if "begun" in served.lacks and "continue_final_message" in body:
            return self.refuse(400, "Unrecognized request argument supplied: continue_final_message")
        text = ""
        for message in body["messages"]:
            content: Any = message["content"]
            parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] == "image_url":
                    if "images" in served.lacks:
                        return self.refuse(400, "This model has no eyes.")
                    assert part["image_url"]["url"].startswith("data:image/")
                text += part.get("text", "<picture>")
        if len(text) > 3000:
            return self.refuse(400, "This model's maximum context length is 3000 tokens.")
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if body.get("logprobs") and "logits" not in served.lacks:
            logits = torch.log_softmax(next(lm._next([lm._started(lm._ids(text))]))[1][0], dim=-1)
            top = logits.topk(body["top_logprobs"])
            shown = [
                {"token": lm.tokenizer.decode([token]), "logprob": value}
                for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
            choice["logprobs"] = {"content": [{**shown[0], "top_logprobs": shown}]}
        with served.lock:
            answer = lm.generate([[text]], body[served.limit])[0]
        choice["message"] = {"role": "assistant", "content": answer}
        return self.answer({"choices": [choice], "usage": {"prompt_tokens": len(text), "completion_tokens": 2}})

    def echo(self, body: dict[str, Any]) -> None:
        """The prompt's tokens and one more, each with its log-probability."""
        if "logprobs" in self.served.lacks:
            return self.refuse(404, "No such path.")
        assert body["echo"] is True
        assert body["max_tokens"] == 1
        lm, text = self.served.lm, body["prompt"]
        ids = lm._ids(text)
        scores = torch.log_softmax(lm._vocabulary(lm._states([ids])[0]), dim=-1)
        values = [None, *(float(scores[n, token]) for n, token in enumerate(ids[1:]))]
        told = {
            "tokens": [*(lm.tokenizer.decode([token]) for token in ids), "!"],
            "token_logprobs": [*values, -0.5],
            "text_offset": [*(len(lm.tokenizer.decode(ids[:n])) for n in range(len(ids))), len(text)],
        }
        return self.answer({"choices": [{"text": text + "!", "logprobs": told}], "usage": {"prompt_tokens": len(ids)}})

    def embed(self, body: dict[str, Any]) -> None:
        """Vectors that spell what they are of: its characters' codes; of a picture, its first bytes. Last one first."""
        if "messages" in body:
            parts = body["messages"][0]["content"]
            if "images" in self.served.lacks:
                return self.refuse(400, "This model has no eyes.")
            said = ["".join(part.get("text", "") or part["image_url"]["url"][-40:] for part in parts)]
        else:
            said = body["input"]
        dim = body.get("dimensions", 8)
        rows = [[1.0 + sum(map(ord, text[place::dim])) for place in range(dim)] for text in said]
        told = [{"index": place, "embedding": row} for place, row in enumerate(rows)]
        return self.answer({"data": told[::-1], "usage": {"prompt_tokens": sum(map(len, said))}})

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.send(status, json.dumps({"error": {"message": message}}).encode(), "application/json", 0, **headers)

    def answer(self, told: dict[str, Any]) -> None:
        self.send(200, json.dumps(told).encode())

    def send(self, status: int, data: bytes, kind: str = "application/json", length: int = 0, **headers: str) -> None:
        self.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(length or len(data)), **headers}
        for name, value in told.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        if length > len(data):
            self.close_connection = True


@contextmanager
def serving(lm: TransformersLM) -> Iterator[Served]:
    """The server, for as long as the block lasts."""
    served = Served(lm)
    made = type("Bound", (Handler,), {"served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
