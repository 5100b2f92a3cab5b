"""The operations as LangChain tools: the MCP server's names, descriptions, schemas and text blocks."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.tools import BaseTool, ToolException
from pydantic import Field, create_model

from ...errors import BadInput, Cancelled, TriptychError
from .. import calls
from ..arguments import (
    Arguments,
    CompressArguments,
    FetchArguments,
    InLibrary,
    RerankArguments,
    RetrieveArguments,
    SearchArguments,
    StatusArguments,
    ViewArguments,
    description,
    input_schema,
    parse,
)
from ..listening import WAV
from .libraries import Libraries
from .runs import awaited, worked

if TYPE_CHECKING:
    from pathlib import Path

    from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
    from langchain_core.runnables import RunnableConfig

    from ..answers import Answer
    from ..calls import Called
    from ..library import Triptych

_TOOLS: dict[str, tuple[type[Arguments], Callable[[Any, Any], Called]]] = {
    "retrieve": (RetrieveArguments, calls.retrieve),
    "search": (SearchArguments, calls.search),
    "fetch": (FetchArguments, calls.fetch),
    "view": (ViewArguments, calls.view),
    "rerank": (RerankArguments, calls.rerank),
    "compress": (CompressArguments, calls.compress),
    "status": (StatusArguments, calls.status),
}


class TriptychTool(BaseTool):
    """One operation. Errors come back as text that says what to do, so that an agent can go on.

    `view` answers with a text block and an image block (of sound, where that was asked for, a file block), the others
    with text. The artifact is the whole result, without picture and sound. A text instead of arguments is the first
    argument.
    """

    libraries: Any = Field(repr=False, exclude=True)
    arguments: type[Arguments] = Field(repr=False, exclude=True)
    call: Callable[..., Any] = Field(repr=False, exclude=True)
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[Arguments]:
        """The arguments as a pydantic model. What language models get is `args_schema`."""
        return create_model(self.arguments.__name__, __base__=(self.arguments, InLibrary), __doc__=self.description)

    def _parse_input(self, tool_input: str | dict[str, Any], tool_call_id: str | None) -> str | dict[str, Any]:
        return {next(iter(self.args)): tool_input} if isinstance(tool_input, str) else tool_input

    def _run(self, /, *, run_manager: CallbackManagerForToolRun | None = None, **given: Any) -> tuple[Any, Any]:
        return worked(lambda: self._answered(given), run_manager)

    async def _arun(
        self, /, *, run_manager: AsyncCallbackManagerForToolRun | None = None, **given: Any
    ) -> tuple[Any, Any]:
        return await awaited(lambda: self._answered(given), run_manager)

    def _answered(self, given: dict[str, Any]) -> tuple[Any, Any]:
        try:
            named = parse(InLibrary, {"library": given.pop("library", None)}).library
            arguments = parse(self.arguments, given)
            session = self.libraries(named)
            if named is not None:  # also where the caller brings all that the tool reads
                session.must_exist()
            called: Called = self.call(session, arguments)
        except Cancelled:
            raise
        except TriptychError as error:
            raise ToolException(str(error)) from error
        return _content(called.answer), called.result.model_dump(mode="json", exclude={"image", "sound"})


def triptych_tools(library: str | Path | Triptych = "default", names: Sequence[str] | None = None) -> list[BaseTool]:
    """LangChain tools over one library, all sharing one session.

    Args:
        library: a library's name or folder, or an open `Triptych`. A call may name another: the argument `library`.
        names: which of `retrieve`, `search`, `fetch`, `view`, `rerank`, `compress`, `status`; None for all, in this
            order.
    """
    wanted = list(_TOOLS) if names is None else list(names)
    for name in wanted:
        if name not in _TOOLS:
            raise BadInput(f"Unknown tool `{name}`.", f"Use: {', '.join(_TOOLS)}.")
    libraries = Libraries(library)
    return [_tool(name, libraries) for name in wanted]


def _tool(name: str, libraries: Libraries) -> BaseTool:
    arguments, call = _TOOLS[name]
    return TriptychTool(
        name=name,
        description=description(arguments),
        args_schema=input_schema(arguments, libraries.settings),
        arguments=arguments,
        libraries=libraries,
        call=call,
    )


def _content(answer: Answer) -> str | list[dict[str, Any]]:
    """The text, alone or as a block before picture and sound. The clip's address stands in it: a link would be one that
    only an MCP client can follow, and that vendors refuse."""
    # LangChain turns audio blocks of tools into text, base64 and all; files it passes on.
    media = [("image", answer.image, answer.mime), ("file", answer.sound, WAV)]
    shown = [
        {"type": kind, "base64": base64.b64encode(data).decode(), "mime_type": mime}
        for kind, data, mime in media
        if data is not None
    ]
    return [{"type": "text", "text": answer.text}, *shown] if shown else answer.text
