"""What an OpenAPI document states, one fact a line, and the comparison of ours with TGI's.

``tgi_api.txt`` holds the facts of TGI 3.3's own document. ``python tests/router/openapi_facts.py FILE``
prints those of a document, and without an argument it prints the comparison.

Facts leave out prose and examples, and how a thing is spelled. TGI writes defaults as strings (``"null"``,
``"1024"``) and exclusive bounds as numbers (``exclusiveMinimum: 0``), both wrong in OpenAPI 3.0. A reference
that may be null is an ``allOf`` of one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuron_server.router.openapi import document

TABLE = Path(__file__).with_name("tgi_api.txt")
REF = "#/components/schemas/"


def facts(document: Mapping) -> dict[str, str]:
    """Address -> what stands there. ``GenerateParameters.seed`` -> ``integer int64, nullable, minimum 0``."""
    found = {"openapi": document["openapi"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found.update(_operation(f"{method.upper()} {path}", operation))
    for name, schema in document["components"]["schemas"].items():
        found.update(_schema(name, schema))
    return found


def _operation(address: str, operation: Mapping) -> Iterator[tuple[str, str]]:
    yield address, f"{operation['operationId']}, tagged {' '.join(operation['tags'])}"
    body = operation.get("requestBody")
    if body is not None:
        yield f"{address} body", "required" if body.get("required") else "optional"
        yield from _contents(f"{address} body", body["content"])
    for status, response in operation["responses"].items():
        yield f"{address} {status}", "" if response.get("content") else "empty"
        yield from _contents(f"{address} {status}", response.get("content", {}))


def _contents(address: str, contents: Mapping) -> Iterator[tuple[str, str]]:
    for content_type, content in contents.items():
        yield from _schema(f"{address} {content_type}", content["schema"])


def _schema(address: str, schema: Mapping, required: bool = False) -> Iterator[tuple[str, str]]:
    """The fact of ``schema`` itself, then those of its parts."""
    union = schema.get("oneOf") or schema.get("allOf") or []
    if len(union) == 1:
        schema = {**schema, **union[0]}
        union = []
    yield address, ", ".join(_words(schema, union, required))
    for n, member in enumerate(union):
        yield from _schema(f"{address}|{n}", member)
    if "items" in schema:
        yield from _schema(f"{address}[]", schema["items"])
    needed = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        yield from _schema(f"{address}.{name}", field, name in needed)


def _words(schema: Mapping, union: Sequence, required: bool) -> Iterator[str]:
    if "$ref" in schema:
        yield "-> " + schema["$ref"].removeprefix(REF)
    elif union:
        yield f"{'one' if 'oneOf' in schema else 'all'} of {len(union)}"
    else:
        yield " ".join([schema.get("type", "any"), *filter(None, [schema.get("format")])])
    if "discriminator" in schema:
        yield f"told apart by {schema['discriminator']['propertyName']}"
    if "enum" in schema:
        yield "one of " + " ".join(sorted(schema["enum"]))
    if required:
        yield "required"
    if schema.get("nullable"):
        yield "nullable"
    if "default" in schema:
        yield "default " + _default(schema)
    yield from _bound(schema, "minimum", "exclusiveMinimum")
    yield from _bound(schema, "maximum", "exclusiveMaximum")
    if "minItems" in schema:
        yield f"at least {schema['minItems']} items"
    if "maxItems" in schema:
        yield f"at most {schema['maxItems']} items"


def _default(schema: Mapping) -> str:
    default = schema["default"]
    if isinstance(default, str) and (schema.get("type") != "string" or default == "null"):
        return default
    return json.dumps(default)


def _bound(schema: Mapping, inclusive: str, exclusive: str) -> Iterator[str]:
    flag = schema.get(exclusive)
    if flag is True:
        yield f"{inclusive} {schema[inclusive]:g} exclusive"
    elif isinstance(flag, (int, float)) and not isinstance(flag, bool):
        yield f"{inclusive} {flag:g} exclusive"
    elif inclusive in schema:
        yield f"{inclusive} {schema[inclusive]:g}"


# -- the comparison ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Addresses that both documents have with the same words, with other words, or one of them has not."""

    matched: frozenset[str]
    different: Mapping[str, tuple[str, str]]  # address -> (TGI's, ours)
    missing: frozenset[str]
    added: frozenset[str]

    @property
    def deviations(self) -> set[str]:
        return {*self.different, *self.missing, *self.added}

    def table(self) -> str:
        """Counts per schema and operation, the deviations, the totals."""
        parts = [self.matched, frozenset(self.different), self.missing, self.added]
        units = sorted(
            {_unit(address) for part in parts for address in part}, key=lambda u: ("/" not in u, u)
        )
        rows = [(unit, [sum(_unit(a) == unit for a in part) for part in parts]) for unit in units]
        rows.append(("TOTAL", [len(part) for part in parts]))
        lines = [f"{'':32}{'matched':>9}{'different':>11}{'missing':>9}{'added':>7}"]
        lines += [f"{unit:32}{m:9}{d:11}{x:9}{a:7}" for unit, (m, d, x, a) in rows]
        lines += [f"different  {a}: TGI {t!r}, ours {o!r}" for a, (t, o) in sorted(self.different.items())]
        lines += [f"missing    {a}" for a in sorted(self.missing)]
        lines += [f"added      {a}" for a in sorted(self.added)]
        return "\n".join(lines)


def compare(theirs: Mapping[str, str], ours: Mapping[str, str]) -> Comparison:
    """Ours against theirs, fact by fact."""
    both = theirs.keys() & ours.keys()
    return Comparison(
        matched=frozenset(a for a in both if theirs[a] == ours[a]),
        different={a: (theirs[a], ours[a]) for a in both if theirs[a] != ours[a]},
        missing=frozenset(theirs.keys() - ours.keys()),
        added=frozenset(ours.keys() - theirs.keys()),
    )


def _unit(address: str) -> str:
    """The schema or operation an address lies in."""
    words = address.split(" ")
    if len(words) > 1:
        return " ".join(words[:2])
    return address.partition(".")[0].partition("|")[0].partition("[")[0]


def published() -> dict[str, str]:
    """TGI's facts, from the table."""
    return dict(line.split("\t") for line in TABLE.read_text().splitlines())


def main(argv: Sequence[str]) -> None:
    if argv:
        lines = [
            f"{address}\t{words}" for address, words in facts(json.loads(Path(argv[0]).read_text())).items()
        ]
    else:
        lines = [compare(published(), facts(json.loads(document()))).table()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
