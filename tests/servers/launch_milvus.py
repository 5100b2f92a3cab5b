"""Runs Milvus 2.3.5 of the environment that this is started with, until standard input closes.

    python launch_milvus.py '{"data": FOLDER, "health": PORT, "ports": {"proxy_port": PORT, …}}'

The server ends with whoever started it: when that process dies, in whatever way, its end of the pipe closes.
"""

import json
import sys

import milvus

# It has no setting for the addresses it listens on; these are the ones that its parts call each other by.
PARTS = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")


def main() -> None:
    given = json.loads(sys.argv[1])
    server = milvus.default_server  # type: ignore[attr-defined]
    server.wait_for_started = False
    server.webservice_port = given["health"]
    server.set_base_dir(given["data"])
    for name, port in given["ports"].items():
        server.config.set(name, port)
    server.config.set("authorization_enabled", True)
    for part in PARTS:
        server.config.set(f"{part}.ip", "127.0.0.1")
    server.start()
    try:
        sys.stdin.read()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
