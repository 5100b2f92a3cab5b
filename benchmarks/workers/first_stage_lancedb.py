"""LanceDB's embedded database: vectors without an index (its default: exact), its full-text index, its hybrid."""

from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from _first_stage import Asked, Data, Search, Told, measured, spans

BATCH = 10_000


def build(data: Data, folder: Path, told: Told) -> dict[str, Search]:
    dim = data.vectors.shape[1]
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), dim))])
    table = lancedb.connect(folder).create_table("items", schema=schema)
    for part in spans(len(data.ids), BATCH):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(data.vectors[part].ravel()), dim)
        table.add(pa.Table.from_arrays([pa.array(data.ids[part]), pa.array(data.texts[part]), vectors], schema=schema))
        told(part.stop)
    table.create_fts_index("text", use_tantivy=False)

    def ids(query: Any, k: int) -> list[str]:
        return [row["id"] for row in query.select(["id", "text"]).limit(k).to_list()]

    def lexical(asked: Asked) -> list[str]:
        return ids(table.search(asked.text, query_type="fts"), asked.k)

    def dense(asked: Asked) -> list[str]:
        return ids(table.search(asked.vector), asked.k)

    def hybrid(asked: Asked) -> list[str]:
        return ids(table.search(query_type="hybrid").vector(asked.vector).text(asked.text), asked.k)

    return {"dense": dense, "bm25": lexical, "hybrid": hybrid}


if __name__ == "__main__":
    measured(("dense", "bm25", "hybrid"), build)
