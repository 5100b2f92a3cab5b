"""A process that holds or shares a store: one JSON command per line on stdin, one JSON answer per line on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from triptych.errors import TriptychError
from triptych.retrievers.base import Item, Route, Source, Space, Where
from triptych.retrievers.stores.milvus import LEXICAL, MilvusStore

DENSE = Space("tiny", "dense", 4)


def item(name: str, text: str, document: str) -> Item:
    return Item(name, text, Source(f"root/{document}.txt", 0, len(text)), meta={"document": document})


def run(store: MilvusStore, command: dict[str, object]) -> object:
    match command["op"]:
        case "add":
            items = [item(*triple) for triple in command["items"]]
            store.upsert(items, {"tiny": np.eye(4, dtype="f4")[[n % 4 for n in range(len(items))]]})
            return len(items)
        case "search":
            hits = store.search([Route(LEXICAL, text=str(command["text"]))], 10)
            return [[hit.item.id, hit.score] for hit in hits]
        case "delete":
            return store.delete(Where(documents=(str(command["document"]),)))
        case "count":
            return store.count()
        case "close":
            return store.close()
    raise ValueError(command["op"])


def main() -> None:
    store = MilvusStore(Path(sys.argv[1]), [DENSE], *sys.argv[2:]).open()
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
