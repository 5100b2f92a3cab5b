"""A process that holds or shares a store: one JSON command per line on stdin, one JSON answer per line on stdout."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

from triptych.errors import TriptychError
from triptych.retrievers.base import Item, Route, Source, Space, Where
from triptych.retrievers.stores.milvus import LEXICAL, MilvusStore

DENSE = Space("tiny", "dense", 4)


def item(name: str, text: str, document: str) -> Item:
    return Item(name, text, Source(f"root/{document}.txt", 0, len(text)), meta={"document": document})


def add(store: MilvusStore, triples: list[list[str]]) -> int:
    items = [item(*triple) for triple in triples]
    store.upsert(items, {"tiny": np.eye(4, dtype=np.float32)[[n % 4 for n in range(len(items))]]})
    return len(items)


def stream(store: MilvusStore, name: str) -> None:
    """Write batches of ten until somebody kills the process; say what is acknowledged."""
    done = 0
    while True:
        add(store, [[f"{name}-{done + n}", f"word{done + n} common", f"{name}-{done // 10}"] for n in range(10)])
        done += 10
        print(json.dumps(done), flush=True)


def run(store: MilvusStore, command: dict[str, Any]) -> Any:
    match command["op"]:
        case "add":
            return add(store, command["items"])
        case "stream":
            return stream(store, command["name"])
        case "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (command["bytes"], resource.RLIM_INFINITY))
            return None
        case "search":
            hits = store.search([Route(LEXICAL, text=command["text"])], 10)
            return [[hit.item.id, hit.score] for hit in hits]
        case "delete":
            return store.delete(Where(documents=(command["document"],)))
        case "count":
            return store.count()
        case "close":
            return store.close()
    raise ValueError(command["op"])


def main() -> None:
    store = MilvusStore(Path(sys.argv[1]), [DENSE]).open()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        try:
            answer = run(store, json.loads(line))
        except TriptychError as error:
            answer = error.as_dict()
        print(json.dumps(answer), flush=True)
    store.close()


if __name__ == "__main__":
    main()
