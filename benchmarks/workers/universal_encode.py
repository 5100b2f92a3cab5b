"""Pictures a second, stored bytes and memory of one encoder of the universal family, beside sentence-transformers.

Job: `system` (an id), `size` ("tiny": the toy of the tests; "published": the architecture of a published checkpoint),
`precision`, `rival` (whether sentence-transformers has the architecture), `items`, `edge` (pixels), `batches`,
`rounds`, `seed`. Weights are random in any case; the rival loads the folder that the encoder was saved in. Reading and
scaling of the picture's file counts for both.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _worker import Out, read

from triptych import Settings
from triptych.manifests.registry import card
from triptych.retrievers.base import Encoder, Item, MediaRef, Source
from triptych.retrievers.loading import set_threads

Encode = Callable[[Sequence[Item]], list[np.ndarray]]
OURS, RIVAL = "triptych", "sentence-transformers"


def main() -> None:
    job, out = read(), Out()
    out.put("threads", set_threads(Settings.load().threads))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out.put("device", torch.cuda.get_device_name() if device == "cuda" else "cpu")
    with tempfile.TemporaryDirectory() as where:
        items = drawn(Path(where), job["items"], job["edge"], job["seed"])
        sides = engines(job, Path(where) / "weights", device)
        some = items[: max(job["batches"])]
        vectors = {name: encode(some) for name, encode in sides.items()}
        out.put("stored", {name: stored(found) for name, found in vectors.items()})
        out.put("cosine_min", {name: least_cosine(found, vectors[OURS]) for name, found in vectors.items()})
        out.put("gflop_per_item", gflop(sides[OURS], items[:1]))
        out.put("peak_mb", {name: peak_mb(encode, some, device) / len(some) for name, encode in sides.items()})
        per_s: dict[str, dict[int, list[float]]] = {name: {size: [] for size in job["batches"]} for name in sides}
        for _ in range(job["rounds"]):
            for size in job["batches"]:
                for name, encode in sides.items():
                    per_s[name][size].append(rate(encode, items[: max(size, job["least"])], size))
            out.put("per_s", per_s)
    out.put("load_average", os.getloadavg()[0])


def engines(job: dict[str, Any], where: Path, device: str) -> dict[str, Encode]:
    """Ours, and the rival's where it has the architecture, over the same weights."""
    kind = card(job["system"], "retriever").resolve()
    made = kind.tiny(job["seed"]) if job["size"] == "tiny" else PUBLISHED[job["system"]](kind, job["seed"])
    if not job["rival"]:
        return {OURS: encoding(made)}
    made.save(where)
    ours = kind.from_folder(where, job["precision"], device)
    return {OURS: encoding(ours), RIVAL: rival(where, job["precision"], device, many=ours.space.kind == "multi")}


def encoding(encoder: Encoder) -> Encode:
    return lambda items: list(encoder.encode(items, "document"))


def rival(where: Path, precision: str, device: str, many: bool) -> Encode:
    """sentence-transformers' own `encode` of opened pictures, as its documentation does."""
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer

    kind = MultiVectorEncoder if many else SentenceTransformer
    theirs = kind(str(where), device=device, local_files_only=True, model_kwargs={"dtype": getattr(torch, precision)})

    def encode(items: Sequence[Item]) -> list[np.ndarray]:
        pictures = list(opened(items))
        if many:
            made = theirs.encode_document(pictures, batch_size=len(pictures), show_progress_bar=False)
        else:
            made = theirs.encode(pictures, batch_size=len(pictures), normalize_embeddings=True, show_progress_bar=False)
        return [np.asarray(torch.as_tensor(one).float().cpu()) for one in made]

    return encode


def opened(items: Sequence[Item]) -> Iterator[Any]:
    from PIL import Image

    for one in items:
        assert one.media is not None
        with Image.open(one.media.uri) as picture:
            yield picture.convert("RGB")


def big_clip(kind: Any, seed: int) -> Encoder:
    """CLIP of the size of ViT-B/32, which transformers' configuration has by default; its text tower knows bytes."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    tiny = kind.tiny(seed)
    words = tiny.model.config.text_config
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config={name: getattr(words, name) for name in names})).eval()
    made: Encoder = kind(model, tiny.tokenizer, CLIPImageProcessorPil())
    return made


PUBLISHED: dict[str, Callable[[Any, int], Encoder]] = {"clip": big_clip}


def drawn(where: Path, count: int, edge: int, seed: int) -> list[Item]:
    """Pictures of smooth noise as JPEG files."""
    from PIL import Image

    items = []
    for number in range(count):
        noise = np.random.default_rng([seed, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = where / f"{number}.jpg"
        Image.fromarray(noise).resize((edge, edge), Image.Resampling.BICUBIC).save(path, quality=90)
        media = MediaRef(str(path), "image/jpeg")
        items.append(Item(f"picture {number}", "", Source(str(path)), modality="image", media=media))
    return items


def rate(encode: Encode, items: Sequence[Item], size: int) -> float:
    """Items a second, `size` at a time."""
    start = time.perf_counter()
    for first in range(0, len(items), size):
        encode(items[first : first + size])
    return len(items) / (time.perf_counter() - start)


def stored(vectors: Sequence[np.ndarray]) -> dict[str, float]:
    """Vectors of an item, and their bytes as they are stored (float32)."""
    return {
        "vectors_per_item": float(np.mean([len(np.atleast_2d(one)) for one in vectors])),
        "bytes_per_item": float(np.mean([one.astype(np.float32).nbytes for one in vectors])),
    }


def least_cosine(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Between vectors of the same place."""
    pairs = [(np.atleast_2d(one), np.atleast_2d(other)) for one, other in zip(found, wanted, strict=True)]
    return min(float((one.astype(np.float64) * other).sum(axis=1).min()) for one, other in pairs)


def gflop(encode: Encode, items: Sequence[Item]) -> float:
    """Billions of operations that torch counts for these items: matrix products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encode(items)
    return counter.get_total_flops() / 1e9


def peak_mb(encode: Encode, items: Sequence[Item], device: str) -> float:
    """The most that tensors took at once while these were encoded in one call, beyond what was there, in MiB."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        encode(items)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        encode(items)
    events = [one for one in told.profiler.kineto_results.events() if one.name() == "[memory]"]
    levels = np.cumsum([one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())])
    return float(max(levels.max(initial=0), 0)) / 2**20


if __name__ == "__main__":
    main()
