"""LangChain's own standard suites, over every tool and the retriever, on a library of real files.

Their asynchronous tests run on anyio's plugin, which this suite has anyway (see `addopts` in pyproject.toml).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests, ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from triptych import Settings, Triptych
from triptych.tools.langchain import TriptychRetriever, triptych_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.retrievers import BaseRetriever
    from langchain_core.tools import BaseTool

SAMPLE = Path(__file__).resolve().parent.parent / "docs" / "sample" / "vessey-holm"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triptych]:
    """Two files, found by their words."""
    with Triptych("reports", Settings(home=tmp_path_factory.mktemp("home"))) as session:
        session.index([SAMPLE / "incidents", SAMPLE / "reports" / "water-quality-2024.pdf"])
        yield session


class _OfOurs:
    """What the suites below share: the library, and an id of a passage with a page to look at."""

    name = ""
    session: Triptych
    passage = ""

    @pytest.fixture(autouse=True)
    def _over_the_library(self, library: Triptych) -> None:
        hits = library.search("water quality", 50).hits
        type(self).session = library
        type(self).passage = next(hit.id for hit in hits if hit.page is not None)

    @property
    def tool_constructor(self) -> BaseTool:
        return triptych_tools(self.session, [self.name])[0]

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        examples: dict[str, dict[str, Any]] = {
            "retrieve": {"query": "How long was the power out?", "max_tokens": 500},
            "search": {"query": "storm", "k": 3},
            "fetch": {"id": self.passage, "span": [0, 20]},
            "view": {"id": self.passage, "max_edge": 128},
            "rerank": {"query": "water", "ids": [self.passage]},
            "compress": {"query": "water", "passages": [{"text": "Water is wet. Sand is dry."}], "max_tokens": 200},
            "status": {},
        }
        return examples[self.name]


class TestRetrieveUnit(_OfOurs, ToolsUnitTests):
    name = "retrieve"


class TestSearchUnit(_OfOurs, ToolsUnitTests):
    name = "search"


class TestFetchUnit(_OfOurs, ToolsUnitTests):
    name = "fetch"


class TestViewUnit(_OfOurs, ToolsUnitTests):
    name = "view"


class TestRerankUnit(_OfOurs, ToolsUnitTests):
    name = "rerank"


class TestCompressUnit(_OfOurs, ToolsUnitTests):
    name = "compress"


class TestStatusUnit(_OfOurs, ToolsUnitTests):
    name = "status"


class TestRetrieve(_OfOurs, ToolsIntegrationTests):
    name = "retrieve"


class TestSearch(_OfOurs, ToolsIntegrationTests):
    name = "search"


class TestFetch(_OfOurs, ToolsIntegrationTests):
    name = "fetch"


class TestView(_OfOurs, ToolsIntegrationTests):
    name = "view"


class TestRerank(_OfOurs, ToolsIntegrationTests):
    name = "rerank"


class TestCompress(_OfOurs, ToolsIntegrationTests):
    name = "compress"


class TestStatus(_OfOurs, ToolsIntegrationTests):
    name = "status"


class TestRetriever(_OfOurs, RetrieversIntegrationTests):
    retriever_query_example = "water samples after the storm"

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return TriptychRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"library": self.session}


class TestRetrieverOfEvidence(TestRetriever):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"library": self.session, "max_tokens": 4000}
