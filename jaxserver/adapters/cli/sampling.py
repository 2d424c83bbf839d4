"""The options of a request that are not settings of the server."""

import dataclasses
from typing import Annotated, Any

import typer

from jaxserver.adapters.cli.setting_options import ANSWER
from jaxserver.ports.types import SamplingParams


def _option(*names: str, about: str) -> Any:
    return typer.Option(*names, help=about, rich_help_panel=ANSWER)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFlags:
    greedy: Annotated[bool, _option("--greedy", about="Take the likeliest token.")] = (
        False
    )
    seed: Annotated[
        int | None, _option(about="Fixes the draws: the same again gives the same.")
    ] = None
    stop: Annotated[
        list[str] | None,
        _option(about="End before this text; may be given several times."),
    ] = None
    min_p: Annotated[
        float,
        _option(about="Drop tokens less likely than this times the likeliest."),
    ] = 0.0
    repetition_penalty: Annotated[
        float, _option(about="Over 1, discourages tokens of prompt and answer.")
    ] = 1.0
    presence_penalty: Annotated[
        float, _option(about="Over 0, discourages tokens of the answer.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, _option(about="The same, once for every time a token came.")
    ] = 0.0

    def params(self, *, logprobs: int | None = None) -> SamplingParams:
        return SamplingParams(
            greedy=self.greedy,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logprobs=logprobs,
        )
