"""Vectors from an endpoint: in the order of the inputs whatever the order of the answer, checked, and never the key."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych import Settings, Triptych
from triptych.errors import BadInput, EndpointError, MissingWeights, StoreError, Unsupported
from triptych.manifests.registry import card
from triptych.retrievers.base import Item, MediaRef, Query, Source
from triptych.retrievers.endpoint import Endpoint
from triptych.retrievers.lm_transformers import TransformersLM
from triptych.retrievers.universal.endpoint_encoder import KEY, EndpointEncoder
from triptych.tools.stages import Stages

sys.path.append(str(Path(__file__).parent))
from openai_server import Handler, Served, serving

SECRET = "sk-very-secret-1234"
TEXTS = ["The owl sleeps.", "Hotels are booked by the travel desk.", "A fox crossed the road."]


@pytest.fixture(scope="module")
def lm() -> TransformersLM:
    return TransformersLM.tiny(0)


@pytest.fixture
def served(lm: TransformersLM) -> Iterator[Served]:
    with serving(lm) as found:
        yield found


def encoder(served: Served, dim: int = 8, **options: Any) -> EndpointEncoder:
    client = Endpoint(served.url, SECRET, timeout_s=2.0, pause_s=0.01)
    return EndpointEncoder(client, "embedder", dim, **options)


def item(text: str, **given: Any) -> Item:
    return Item(text, text, Source("notes/a.md"), **given)


@pytest.fixture
def picture(tmp_path: Path) -> MediaRef:
    path = tmp_path / "owl.png"
    Image.effect_noise((30, 20), 40).convert("RGB").save(path)
    return MediaRef(str(path), "image/png")


def test_vectors_stand_in_the_order_of_the_inputs(served: Served) -> None:
    made = encoder(served)
    together = made.encode([Query(text) for text in TEXTS], "query")
    assert (together.shape, together.dtype) == ((3, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for row, text in zip(together, TEXTS, strict=True):
        np.testing.assert_array_equal(row, made.encode([Query(text)], "query")[0])
    path, headers, body = served.requests[0]
    assert (path, headers["Authorization"]) == ("/v1/embeddings", f"Bearer {SECRET}")
    assert body == {"model": "embedder", "input": TEXTS}


def test_an_instruction_stands_in_front_and_a_shorter_vector_is_asked_for(served: Served) -> None:
    made = encoder(served, 4, shorter=True)
    assert made.encode([Query("owls", instruction="Find the page.")], "query").shape == (1, 4)
    assert served.requests[0][2]["input"] == ["Find the page.\nowls"]
    assert served.requests[0][2]["dimensions"] == 4


def test_pictures_are_sent_as_messages_with_their_words(served: Served, picture: MediaRef) -> None:
    made = encoder(served, images=True)
    given = [
        item("plain", media=picture),
        item("an owl", modality="image", media=picture),
        item("x", modality="page", media=picture),
    ]
    vectors = made.encode(given, "document")
    assert vectors.shape == (3, 8)
    told = [body["messages"][0]["content"] for _, _, body in served.requests if "messages" in body]
    assert sorted(len(parts) for parts in told) == [1, 2]  # a page is its picture alone
    assert all(parts[0]["image_url"]["url"].startswith("data:image/png;base64,") for parts in told)
    np.testing.assert_array_equal(vectors[0], made.encode([item("plain")], "document")[0])


def test_what_it_does_not_read_is_refused(served: Served, picture: MediaRef) -> None:
    blind, seeing = encoder(served), encoder(served, images=True)
    with pytest.raises(Unsupported, match="no text"):
        blind.encode([Query(media=picture)], "query")
    with pytest.raises(Unsupported, match="no text and no media"):
        seeing.encode([Query()], "query")
    assert (blind.reads(Query(media=picture)), seeing.reads(Query(media=picture))) == (False, True)
    served.lacks.add("images")
    with pytest.raises(EndpointError, match="no eyes"):
        seeing.encode([Query(media=picture)], "query")


def test_a_vector_that_does_not_fit_is_refused(served: Served) -> None:
    with pytest.raises(EndpointError, match=r"vectors of `8` numbers, not of `5`"):
        encoder(served, 5).encode([Query("owls")], "query")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"data": []}, "without `data`"),
        ({"data": [{"index": 1, "embedding": [1.0] * 8}]}, "without `data`"),
        ({"data": [{"index": 0, "embedding": "AAAA"}]}, "without `data`"),
        ({"vectors": 1}, "without `data`"),
        ({"data": [{"index": 0, "embedding": [float("nan")] * 8}]}, "`nan`"),
        ({"data": [{"index": 0, "embedding": [0.0] * 8}]}, "only zeros"),
    ],
)
def test_odd_answers_are_errors_without_the_key(served: Served, answer: Any, said: str) -> None:
    def wrong(handler: Handler) -> None:
        handler.answer(answer)

    served.faults.append(wrong)
    with pytest.raises(EndpointError, match=said) as error:
        encoder(served).encode([Query("owls")], "query")
    assert SECRET not in str(error.value)


def test_a_busy_endpoint_is_asked_again(served: Served) -> None:
    served.faults.append(lambda handler: handler.refuse(503, "Busy."))
    assert encoder(served).encode([Query("owls")], "query").shape == (1, 8)
    assert len(served.requests) == 2


def test_settings_make_it_and_what_is_missing_is_named(
    served: Served, bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = card("endpoint_encoder", "retriever")
    with pytest.raises(MissingWeights, match="encode_endpoint"):
        EndpointEncoder.load(known, Stages(Settings.load(home=bare_home)))
    with pytest.raises(BadInput, match="encode_model"):
        EndpointEncoder.load(known, Stages(Settings.load(home=bare_home, encode_endpoint=served.url)))
    monkeypatch.setenv(KEY, SECRET)
    given = {"encode_endpoint": served.url, "encode_model": "embedder"}
    assert EndpointEncoder.load(known, Stages(Settings.load(home=bare_home, **given))).space.dim == 8
    assert served.requests[-1][1]["Authorization"] == f"Bearer {SECRET}"
    shorter = EndpointEncoder.load(known, Stages(Settings.load(home=bare_home, encode_dim=4, **given)))
    assert shorter.space.dim == 4


def test_a_library_is_searched_by_it_and_another_model_makes_it_stale(
    served: Served, bare_home: Path, tmp_path: Path
) -> None:
    files = tmp_path / "notes"
    files.mkdir()
    for number, text in enumerate(TEXTS):
        (files / f"{number}.md").write_text(text, "utf-8")

    def opened(model: str, **more: Any) -> Triptych:
        given = {"encode_endpoint": served.url, "encode_model": model, "encoder": "endpoint_encoder", **more}
        return Triptych("notes", Settings.load(home=bare_home, **given))

    with opened("embedder") as library:
        library.index([files])
        found = library.search("The owl sleeps.", retriever="endpoint_encoder")
        assert sorted(hit.uri for hit in found.hits) == ["notes/0.md", "notes/1.md", "notes/2.md"]
    with opened("other") as library, pytest.raises(StoreError, match="built with `endpoint_encoder`"):
        library.search("owl")
    with opened("embedder", encode_images=True) as library, pytest.raises(BadInput, match="looks at pictures"):
        library.index([files])
