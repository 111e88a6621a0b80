"""What a schema class says about itself in the API description only; none of it is checked.

``openapi_dialect`` reads the marks and takes them out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import definitions_schema

NAME, INLINE_MARK = "x-name", "x-inline"

#: Configuration of a class that has no name in the description: it is written out where it is used.
INLINE = ConfigDict(json_schema_extra={INLINE_MARK: True})


@dataclass(frozen=True, slots=True)
class Named:
    """Marks an annotated type that has a name in the description, as a class has by itself."""

    name: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), NAME: self.name}


class ShownAs:
    """Marks a type that is read in another way than it is shown: as a form, or as several forms at once."""

    def __init__(self, *forms: Any) -> None:  # Any: types have no common type
        self._forms = forms

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # inside of another schema, for the handler passes over a schema's own name and marks
        shown = [handler(definitions_schema(TypeAdapter(form).core_schema, [])) for form in self._forms]
        return shown[0] if len(shown) == 1 else {"allOf": shown}


def documented(default: Any, description: str, **keywords: Any) -> Any:
    """A pydantic field whose ``default`` (of the field's type: ``Any``) stands in the description.

    Other defaults do not: TGI's own description is as sparse. ``keywords`` are OpenAPI's, ``example=1.03``.
    What is out of bounds is refused in TGI's own words, by ``validation``; here the bounds are only told.
    """
    extra: JsonDict = {"default": default, **keywords}
    return Field(default, description=description, json_schema_extra=extra)


def told(description: str, **keywords: Any) -> Any:
    """The same for a field without a default in the description; for use in ``Annotated``."""
    return Field(description=description, json_schema_extra=keywords)
