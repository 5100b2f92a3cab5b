"""Writes what assistants, registries and stores read, and builds the Claude Desktop bundle.

python .ci/manifests.py write         manifests/clients, from one source
python .ci/manifests.py bundle WHEEL OUT    the .mcpb with this wheel in it
"""

from __future__ import annotations

import sys
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from triptych.manifests import bundles
from triptych.server.doors import INSTRUCTIONS, Door, doors
from triptych.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "manifests" / "clients"
ICONS = (bundles.ICON, f"{bundles.PLUGIN}/.claude-plugin/{bundles.ICON}")
NIGHT, PANELS = (24, 32, 48), ((232, 196, 104), (226, 122, 92), (126, 178, 164))


def made() -> bundles.Made:
    """Everything that manifests are made from, as the package has it now."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    tools = tuple(_tool(door) for door in doors())
    return bundles.Made(project["version"], project["requires-python"], tools, INSTRUCTIONS)


def _tool(door: Door) -> bundles.Tool:
    properties = door.input_schema(Settings(home=Path()))["properties"]
    rows = tuple((name, _kind(schema), schema.get("description", "")) for name, schema in properties.items())
    return bundles.Tool(door.name, door.title, door.description, rows)


def _kind(schema: dict[str, Any]) -> str:
    return str(schema.get("type") or schema.get("anyOf", [{}])[0].get("type", "string"))


def icon() -> Image.Image:
    """Three panels on a dark ground: a tall one between two that lean on it."""
    edge = bundles.ICON_EDGE
    picture = Image.new("RGB", (edge, edge), NIGHT)
    draw = ImageDraw.Draw(picture)
    outer, tall = (112, 400), (72, 440)
    for (left, right), (top, bottom), colour in zip(
        ((56, 164), (184, 328), (348, 456)), (outer, tall, outer), PANELS, strict=True
    ):
        draw.rectangle((left, top, right, bottom), fill=colour)
    for row, width in enumerate((104, 104, 64)):
        draw.rectangle((204, 120 + 56 * row, 204 + width, 140 + 56 * row), fill=NIGHT)
    return picture


def write(target: Path = TARGET) -> None:
    """Write every file under `target`; icons only where their pixels differ, since encoders differ in bytes."""
    for name, text in bundles.files(made()).items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8", newline="\n")
    for name in ICONS:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_drawn(path):
            icon().save(path, optimize=True)


def _is_drawn(path: Path) -> bool:
    if not path.is_file():
        return False
    with Image.open(path) as found:
        return found.convert("RGB").tobytes() == icon().tobytes()


def bundle(wheel: Path, out: Path) -> None:
    """Write the `.mcpb`: manifest, project, launcher, icon and wheel, with the same bytes for the same content."""
    texts = bundles.files(made())
    content = {name.removeprefix("mcpb/"): text.encode() for name, text in texts.items() if name.startswith("mcpb/")}
    content |= {
        bundles.LAUNCHER_PATH: bundles.LAUNCHER.encode(),
        bundles.wheel_name(made().version): wheel.read_bytes(),
    }
    with BytesIO() as drawn:
        icon().save(drawn, "PNG", optimize=True)
        content[bundles.ICON] = drawn.getvalue()
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(content.items()):
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


def main(arguments: list[str]) -> None:
    if arguments == ["write"]:
        write()
    elif len(arguments) == 3 and arguments[0] == "bundle":
        bundle(Path(arguments[1]), Path(arguments[2]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
