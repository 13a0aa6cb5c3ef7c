"""`meshwire components`: every type of component, with its settings."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from bindings import registry
from mesh.components import ComponentSpec, Field
from mesh.errors import ConfigurationError, MeshError, clip
from sidecar.cli import FAILED, OK
from sidecar.components import fields_of

WIDTH = 100
"""Characters of a line of text."""


class Setting(msgspec.Struct, rename="camel", omit_defaults=True):
    """One setting, for the output as JSON."""

    name: str
    kind: str
    about: str
    default: str = ""
    required: bool = False
    secret: bool = False
    choices: Sequence[str] = ()
    aliases: Sequence[str] = ()
    refused: str = ""


class Type(msgspec.Struct, rename="camel", omit_defaults=True):
    """One type of component, for the output as JSON."""

    type: str
    versions: Sequence[str]
    title: str
    about: str
    settings: Sequence[Setting]
    features: Sequence[str] = ()
    needs: str = ""
    example: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("type", nargs="?", help="one type, with all that is known of it, as in state.redis")
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table", help="default: table")


def execute(args: argparse.Namespace) -> int:
    """A type that cannot be loaded is told on stderr; the others are shown, and the exit code is 1."""
    found: list[ComponentSpec] = []
    wanted = registry.names() if args.type is None else [registry.ALIASES.get(args.type, args.type)]
    problems: list[ConfigurationError] = []
    for type_ in wanted:
        try:
            found += registry.specs(type_)
        except ConfigurationError as error:
            problems.append(error)
    if not found and not problems:
        from mesh.documents import did_you_mean

        raise MeshError(f"there is no type {clip(args.type)}{did_you_mean(args.type, registry.names())}")
    if args.output == "json":
        print(msgspec.json.format(msgspec.json.encode([described(spec) for spec in found]), indent=2).decode())
    elif args.type is None:
        print("\n".join(_table(found)))
    else:
        print("\n\n".join("\n".join(_page(spec)) for spec in found))
    for problem in problems:
        print(f"meshwire components: {problem}", file=sys.stderr)
    return FAILED if problems else OK


def settings_of(spec: ComponentSpec) -> Sequence[Field]:
    """Its own, and those of its category."""
    category = registry.CATEGORIES.get(spec.category)
    return spec.fields if category is None else fields_of(category(), spec)


def described(spec: ComponentSpec) -> Type:
    return Type(
        type=spec.type,
        versions=spec.versions,
        title=spec.title,
        about=spec.about,
        settings=[_setting(field) for field in settings_of(spec)],
        features=spec.features,
        needs=spec.needs,
        example=spec.example,
    )


def _setting(field: Field) -> Setting:
    wanted: dict[str, Any] = {"default": field.default_text(), "kind": field.kind.value}
    same = ("name", "about", "required", "secret", "choices", "aliases", "refused")
    return Setting(**wanted, **{name: getattr(field, name) for name in same})


def _table(specs: Sequence[ComponentSpec]) -> Iterator[str]:
    rows = [("TYPE", "VERSIONS", "NEEDS", "SETTINGS")]
    for spec in specs:
        names = [field.name + ("*" if field.required else "") for field in spec.fields if not field.refused]
        rows.append((spec.type, ",".join(spec.versions), _extra(spec), ", ".join(names)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
    yield ""
    yield "* is required. `meshwire components TYPE` tells all of one, with the settings that its whole category has."


def _page(spec: ComponentSpec) -> Iterator[str]:
    yield f"{spec.type} {', '.join(spec.versions)}: {spec.title}"
    yield ""
    yield from textwrap.wrap(spec.about, WIDTH)
    if spec.needs:
        yield f'\nNeeds {_extra(spec)}: pip install "{_extra(spec)}"'
    if spec.features:
        yield f"\nCan: {', '.join(spec.features)}"
    fields = settings_of(spec)
    yield "\nSettings:" if fields else "\nNo settings."
    for field in fields:
        yield f"\n  {field.name}{' (required)' if field.required else ''}"
        yield from textwrap.wrap(field.about, WIDTH, initial_indent="    ", subsequent_indent="    ")
        yield from (f"    {line}" for line in notes(field))
    if spec.example:
        yield "\nExample:\n"
        yield from (f"  {line}" for line in spec.example.rstrip().splitlines())


def notes(field: Field) -> Iterator[str]:
    """What there is to know of a setting beside its sentence, one thing at a time."""
    yield f"{field.kind.value}{f', {default} if not given' if (default := field.default_text()) else ''}"
    if field.choices:
        yield f"one of {', '.join(field.choices)}"
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", field.minimum), ("at most", field.maximum))
        if bound is not None
    ]
    if bounds:
        yield ", ".join(bounds)
    if field.aliases:
        yield f"also called {', '.join(field.aliases)}"
    if field.secret:
        yield "take it from a secret store"
    if field.refused:
        yield f"refused: {field.refused}"


def _extra(spec: ComponentSpec) -> str:
    return f"meshwire[{spec.needs}]" if spec.needs else ""
