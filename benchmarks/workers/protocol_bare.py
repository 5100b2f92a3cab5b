"""The least that a server can be: one tool, with the SDK that ours uses. What a handshake is compared with."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("bare", log_level="WARNING")


@server.tool()
def search(query: str) -> str:
    """Search."""
    return query


server.run("stdio")
