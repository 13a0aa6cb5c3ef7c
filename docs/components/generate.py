"""Writes the pages of this folder from the specs of the components: `python -P docs/components/generate.py`.

A test compares them, so that they are never behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bindings import registry
from mesh.components import ComponentSpec, Field
from sidecar.cli.components import notes, settings_of

FOLDER = Path(__file__).parent


def pages() -> dict[str, str]:
    """The text of each page, by the name of its file: one for each category that has types of our own."""
    found: dict[str, str] = {}
    for name, make in registry.CATEGORIES.items():
        types = [type_ for type_ in sorted(registry.BUILT_IN) if type_.startswith(f"{name}.")]
        if types:
            found[f"{name}.md"] = "\n".join(
                _page(make().title, [spec for type_ in types for spec in registry.specs(type_)])
            )
    return found


def _page(title: str, specs: list[ComponentSpec]) -> Iterator[str]:
    yield f"# {title}\n"
    yield "Made from the code by `docs/components/generate.py`; do not edit. What holds for all components stands in"
    yield "[Components](../components.md).\n"
    for spec in specs:
        yield from _section(spec)


def _section(spec: ComponentSpec) -> Iterator[str]:
    several = len(registry.specs(spec.type)) > 1
    yield f"## {spec.type}{f' {spec.versions[0]}' if several else ''}\n"
    yield f"**{spec.title}**, version {', '.join(f'`{version}`' for version in spec.versions)}. {spec.about}\n"
    if spec.needs:
        yield f"Needs `pip install 'meshwire[{spec.needs}]'`.\n"
    if spec.features:
        yield f"Capabilities: {', '.join(f'`{feature}`' for feature in spec.features)}.\n"
    fields = settings_of(spec)
    if fields:
        yield "| Setting | Default | |\n|---|---|---|"
        yield from map(_row, fields)
        yield ""
    if spec.example:
        yield f"```yaml\n{spec.example.strip()}\n```\n"


def _row(field: Field) -> str:
    default = f"`{field.default_text()}`" if field.default_text() else "required" if field.required else ""
    kind, *more = notes(field)
    kind = kind.partition(",")[0]
    about = " ".join([field.about, f"({'; '.join([kind, *more])})"])
    return f"| `{field.name}` | {default} | {about.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
