"""Chroma's persistent client with its default index (HNSW), given vectors, with texts as documents."""

from pathlib import Path

import chromadb
from _first_stage import Asked, Data, Search, Told, measured, spans

BATCH = 1000


def build(data: Data, folder: Path, told: Told) -> dict[str, Search]:
    client = chromadb.PersistentClient(str(folder))
    collection = client.create_collection("items", embedding_function=None)
    for part in spans(len(data.ids), BATCH):
        collection.add(ids=data.ids[part], embeddings=data.vectors[part], documents=data.texts[part])
        told(part.stop)

    def search(asked: Asked) -> list[str]:
        found: list[str] = collection.query(query_embeddings=asked.vector[None], n_results=asked.k)["ids"][0]
        return found

    return {"dense": search}


if __name__ == "__main__":
    measured(("dense",), build)
