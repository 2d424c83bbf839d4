"""What a model is like and how big the engine around it is."""

import dataclasses
from typing import Literal

from jaxserver.ports.errors import InvalidConfig

MIN_CALL_TOKENS = 4
MAX_CALL_TOKENS = 256
"""Fewest and most tokens of one `extend` whose products keep a token's bits (CPU)."""
MAX_DRAFTS = 3
"""Most guessed tokens that a decode step runs in a row."""
PREFILL_LENGTHS = (24, 136)
"""Padded lengths of a prefill chunk: the longest reaches the matrix rate, and holds a
prompt of a round number of tokens with what a template adds; 24 delay little.

Of two lengths, these take the least time over all that may be left of a prompt: 4 %
more than with 16 and 32 in the place of 24. Each takes 1.5 s of a first start (CPU).
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than trained on.

    Attributes:
        kind: `linear` divides all by `factor` (Chen et al. 2023); `llama3` divides long
            wavelengths, keeps short ones and blends in between (Llama 3.1);
            `factors` divides each by its own entry of `factors`.
        low_freq_factor: Wavelengths over `original_max_len / low_freq_factor` are long.
        high_freq_factor: Those under `original_max_len / high_freq_factor` are short.
    """

    kind: Literal["linear", "llama3", "factors"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_len: int = 0
    factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of the llama family: everything that shapes its computation.

    Attributes:
        embed: Width of the residual stream.
        mlp: Width inside the gated MLP.
        max_len: Longest sequence the model was made for.
        norm_eps: Added to the mean square in RMSNorm.
        tied: The output head is the embedding.
        attention_bias: Query, key, value and output projections have biases.
        mlp_bias: Gate, up and down projections have biases.
    """

    vocab_size: int
    num_layers: int
    embed: int
    mlp: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_len: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def groups(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The sizes that the engine's executables are compiled for.

    Attributes:
        slots: Requests decoded together.
        lanes: Groups of so many slots, each with a cache of its own, whose steps run at
            the same time: those of one alone leave cores idle (CPU).
        row_parts: Devices over which the slots are split, `dp` times `fsdp`. Where they
            are, a decode step runs all of them: each device has its own slots, and
            fewer slots would leave devices idle.
        prefill_rows: Prompts prefilled together.
        max_len: Longest sequence, prompt and answer.
        max_stream_tokens: Most tokens decoded per dispatch.
        chunk: The one padded length of a prefill chunk, for models whose bits depend
            on the shape of a call; chunks then begin at its multiples, and a decode
            step runs all slots.
        encoder_lengths: Padded lengths of an encoder's input, which is never cut up.
        block_seconds: Longest decode block while somebody waits or reads along.
        prefill_seconds: Longest prefill chunk of a long prompt while somebody reads
            along, as far as shorter ones are there, which take more a token; one of a
            short prompt may take `scheduler.PATIENCE` times as long. And the longest
            that the last two chunks of any prompt may take without a decode step in
            between.
        tokens_per_page: None where a page is a whole row, and row i is page i.
        pages: None for as many as all slots need for their longest sequences.
        is_fast: Nobody minds if bits depend on how a token was run.
        prefix_cache: Prompts that begin alike share what was made of the beginning.
        speculates: Tokens are guessed where running them costs little.
        free_tokens: So many tokens of a decode step cost little more than one: at least
            the fewest that a call has, which are padded to.
        call_tokens: The call of a prefill takes as long, besides its tokens, as so many
            more would.
        least_match: How many tokens have to match so that what followed on them before
            is guessed; more than one where a guess costs something.
        ageing_seconds: A request that has waited so long is as urgent as one of the
            next lower priority.
    """

    slots: int
    max_len: int
    lanes: int = 1
    prefill_rows: int = 1
    max_stream_tokens: int = 32
    chunk: int | None = None
    encoder_lengths: tuple[int, ...] = ()
    block_seconds: float = 0.1
    prefill_seconds: float = 0.2
    row_parts: int = 1
    tokens_per_page: int | None = None
    pages: int | None = None
    is_fast: bool = False
    prefix_cache: bool = True
    speculates: bool = True
    free_tokens: int = MIN_CALL_TOKENS
    least_match: int = 1
    call_tokens: int = 24
    ageing_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.slots % self.row_parts:
            got = f"{self.slots} on a mesh whose dp times fsdp is {self.row_parts}"
            raise InvalidConfig("slots", got, f"a multiple of {self.row_parts}")
        if self.has_whole_rows and self.num_pages != self.slots:
            allowed = "none, as long as there is no page_size"
            raise InvalidConfig("num_pages", str(self.num_pages), allowed)
        if self.num_pages < self.pages_per_row:
            allowed = f"at least {self.pages_per_row}, for one sequence of max_length"
            raise InvalidConfig("num_pages", str(self.num_pages), allowed)
        if not self.prefill_seconds > 0:
            got = str(self.prefill_seconds)
            raise InvalidConfig("prefill_seconds", got, "more than 0")
        if self.chunk is not None:
            return
        if self.slots > MAX_CALL_TOKENS:
            raise InvalidConfig("slots", str(self.slots), f"at most {MAX_CALL_TOKENS}")
        if self.prefill_rows * MIN_CALL_TOKENS > MAX_CALL_TOKENS:
            allowed = f"at most {MAX_CALL_TOKENS // MIN_CALL_TOKENS}"
            raise InvalidConfig("batch_size", str(self.prefill_rows), allowed)

    @property
    def all_slots(self) -> int:
        """Requests that run at the same time, in all lanes."""
        return self.lanes * self.slots

    @property
    def prefill_lengths(self) -> tuple[int, ...]:
        """Padded lengths of a prefill chunk, shortest first."""
        if self.chunk is not None:
            return self.encoder_lengths or (self.chunk,)
        longest = MAX_CALL_TOKENS // self.prefill_rows
        return tuple(sorted({min(length, longest) for length in PREFILL_LENGTHS}))

    @property
    def score_length(self) -> int | None:
        """Padded length of a chunk whose tokens may be scored: the longest.

        None where a token's bits depend on how it was run, unless nobody minds: a
        score would not be what generating gave.
        """
        if self.chunk is not None:
            return self.chunk if self.is_fast and not self.encoder_lengths else None
        return self.prefill_lengths[-1]

    @property
    def decode_ladder(self) -> tuple[int, ...]:
        """Numbers of slots that a decode step may be compiled for, smallest first."""
        if self.chunk is not None or self.row_parts > 1:
            return (self.slots,)
        rungs = [rung for rung in (1, 4, 8, 16, 32, 64, 128) if rung < self.slots]
        return (*rungs, self.slots)

    def drafts(self, rows: int) -> int:
        """How many guessed tokens a decode step of so many slots runs in each.

        As many as cost little beside their last ones, and none where a token's bits
        depend on how it was run.
        """
        if self.chunk is not None or not self.speculates:
            return 0
        spare = self.free_tokens // rows - 1
        return max(0, min(spare, MAX_DRAFTS, self.max_stream_tokens - 1))

    @property
    def shares_prefixes(self) -> bool:
        """An encoder's work is not cut up, and so not shared."""
        return self.prefix_cache and not self.encoder_lengths

    @property
    def has_whole_rows(self) -> bool:
        """A page is a whole row."""
        return self.tokens_per_page is None

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return self.tokens_per_page or self.max_len

    @property
    def pages_per_row(self) -> int:
        """Pages of a sequence of `max_len`."""
        return self.pages_for(self.max_len)

    @property
    def num_pages(self) -> int:
        """Pages of the cache."""
        return self.pages or self.slots * self.pages_per_row

    def pages_for(self, length: int) -> int:
        """How many pages hold so many tokens."""
        return -(-min(length, self.max_len) // self.page_size)
