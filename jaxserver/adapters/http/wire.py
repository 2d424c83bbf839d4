"""What a field of a request's body may be, said once for every route."""

from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field
from starlette.responses import Response

from jaxserver.ports.types import (
    MAX_CHOICES,
    MAX_DEADLINE_SECONDS,
    MAX_PRIORITY,
    MAX_PROCESSORS,
    MAX_SEED,
    MAX_STOP_STRINGS,
)


class WireModel(pydantic.BaseModel):
    """A JSON object, taken strictly: no unknown fields, no guessing of types."""

    model_config = pydantic.ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False
    )


def json_response(answer: pydantic.BaseModel) -> Response:
    """An answer's fields that were set, floats with all their digits."""
    body = answer.model_dump_json(exclude_unset=True)
    return Response(body, media_type="application/json")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_whole(value: Any) -> Any:
    """JSON has one kind of numbers: 4.0 is 4."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("only false is served")
    return value


StopString = Annotated[str, Field(min_length=1)]
_StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]
Stop = Annotated[
    _StopStrings,
    BeforeValidator(_as_list, json_schema_input_type=StopString | _StopStrings),
]
Whole = BeforeValidator(_as_whole)
TokenId = Annotated[int, Field(ge=0, lt=2**31), Whole]
TokenCount = Annotated[int, Field(ge=1, lt=2**31), Whole]
Temperature = Annotated[float, Field(ge=0, le=100)]
TopK = Annotated[int, Field(ge=0, lt=2**31), Whole]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-100, le=100)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY), Whole]
Seconds = Annotated[float, Field(ge=0, le=MAX_DEADLINE_SECONDS)]
# Said as `lt`: the framework keeps bounds as floats, and 2**64 is one.
Seed = Annotated[int, Field(ge=0, lt=MAX_SEED + 1), Whole]
One = Annotated[int, Field(ge=1, le=1), Whole]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES), Whole]
ProcessorParam = bool | int | float
LogitsProcessors = Annotated[
    dict[str, dict[str, ProcessorParam]], Field(max_length=MAX_PROCESSORS)
]
No = Annotated[
    bool, AfterValidator(_only_false), Field(json_schema_extra={"const": False})
]
Nothing = Annotated[list[Any], Field(max_length=0)]
