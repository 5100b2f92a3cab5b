"""qdrant-client in local mode, on disk, with texts as payload."""

from pathlib import Path

from _first_stage import Asked, Data, Search, Told, measured, spans
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

BATCH = 1000


def build(data: Data, folder: Path, told: Told) -> dict[str, Search]:
    client = QdrantClient(path=str(folder))
    params = VectorParams(size=data.vectors.shape[1], distance=Distance.COSINE)
    client.create_collection("items", vectors_config=params)
    for part in spans(len(data.ids), BATCH):
        client.upsert("items", [point(data, row) for row in range(part.start, part.stop)])
        told(part.stop)

    def search(asked: Asked) -> list[str]:
        found = client.query_points("items", query=asked.vector.tolist(), limit=asked.k).points
        return [point.payload["id"] for point in found]

    return {"dense": search}


def point(data: Data, row: int) -> PointStruct:
    payload = {"id": data.ids[row], "text": data.texts[row]}
    return PointStruct(id=row, vector=data.vectors[row].tolist(), payload=payload)


if __name__ == "__main__":
    measured(("dense",), build)
