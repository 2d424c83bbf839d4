"""The port through which the engine runs any language model with a decoder."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from jaxtyping import Array, Float, Int

from jaxserver.ports.processors import LogitsProcessor

Params: TypeAlias = Any  # A pytree of arrays whose layout only its model knows.
Cache: TypeAlias = Any  # Likewise; the engine only allocates, donates and passes it on.
Hidden: TypeAlias = Any  # Likewise: what a model has of each token that it has run.

LogicalAxis: TypeAlias = Literal[
    "batch", "embed", "heads", "kv_heads", "mlp", "vocab", "pages"
]
"""What a dimension of an array means, whatever devices it is spread over."""
MeshAxis: TypeAlias = Literal["dp", "fsdp", "mp"]
Axis: TypeAlias = LogicalAxis | MeshAxis | tuple[MeshAxis, ...]
"""What cuts a dimension: its meaning, or an axis or several of the mesh by name."""
Axes: TypeAlias = tuple[Axis | None, ...]
TokenAxes: TypeAlias = tuple[tuple[int, ...], ...]
PartitionRules: TypeAlias = Iterable[tuple[str, Iterable[Axis | None]]]
"""Of a user: regular expressions over the paths of parameters, and their axes."""


class TokenBatch(NamedTuple):
    """Some tokens of some rows.

    Attributes:
        tokens: Token ids, right-padded with anything.
        start: Tokens each row held before this call, the position of its first token.
        length: Tokens of this call that count; the rest are neither written nor read.
        page_table: The pages that hold each row, in order; None where row i is page i.
        logits_at: Which of the `time` tokens `extend` returns logits for.
    """

    tokens: Int[Array, "rows time"]
    start: Int[Array, " rows"]
    length: Int[Array, " rows"]
    page_table: Int[Array, "rows pages"] | None
    logits_at: Int[Array, "rows reads"]


class InitCache(Protocol):
    def __call__(self, num_pages: int) -> Cache:
        """An empty cache of that many pages of `page_size` tokens."""
        ...


class Run(Protocol):
    def __call__(
        self, params: Params, cache: Cache, batch: TokenBatch
    ) -> tuple[Hidden, Cache]:
        """Runs a batch and appends its keys and values to the cache.

        Prefill is a long `time`, a decode step is `time == 1`, and checking a draft of
        k tokens is `time == k + 1`. The cache holds no cursor: positions from
        `start + length` on are never attended to, so rolling back is a smaller `start`.
        Positions outside the row's pages are dropped.
        """
        ...


class Read(Protocol):
    def __call__(
        self, params: Params, hidden: Hidden, at: Int[Array, "rows reads"]
    ) -> Float[Array, "rows reads vocab"]:
        """Logits after some of the tokens of a batch that has been run."""
        ...


class CopyPages(Protocol):
    def __call__(
        self,
        cache: Cache,
        source: Int[Array, " copies"],
        target: Int[Array, " copies"],
        length: Int[Array, " copies"],
    ) -> Cache:
        """Copies the first `length` tokens of each source page to its target page."""
        ...


class Encode(Protocol):
    def __call__(
        self,
        params: Params,
        cache: Cache,
        rows: Int[Array, " rows"],
        tokens: Int[Array, "rows time"],
        length: Int[Array, " rows"],
    ) -> Cache:
        """Runs an encoder and writes what the decoder needs of it into the rows."""
        ...


class Guess(Protocol):
    def __call__(
        self, params: Params, cache: Cache, batch: TokenBatch, count: int
    ) -> tuple[Int[Array, "rows count"], Cache]:
        """Guesses the next tokens of some rows, in a cheaper way than running them.

        The batch has each row's last token; its `length` says how many guesses a row
        has use for. What is kept of them is written again when they are run.
        """
        ...


class AnswerRules(NamedTuple):
    """What a model's own settings demand of every answer, whatever a request says.

    Attributes:
        first: The token that begins an answer to a row of one token.
        last: The token that an answer ends with when it reaches its limit.
        min_len: End tokens are not chosen until the row holds more tokens than this.
        suppressed: Tokens that are never chosen.
        suppressed_first: Tokens that an answer does not begin with.
        no_repeat_ngram: No run of this many tokens occurs twice; 0 is off.
    """

    first: int | None = None
    last: int | None = None
    min_len: int = 0
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    no_repeat_ngram: int = 0


class ModelFns(NamedTuple):
    """The pure functions that make up one language model.

    Attributes:
        init_cache: Allocates the cache.
        run: Runs tokens.
        read: Says what may come after them.
        copy_pages: Copies tokens between pages.
        cache_axes: What the dimensions of one leaf of the cache mean, by its shape.
        page_size: Tokens a page holds; `max_len` where a page is a whole row.
        max_len: Longest sequence, in tokens.
        vocab_size: Width of the logits.
        chunk: Where a token's bits depend on the shape of its call: the one padded
            length of a prefill chunk. None where they do not.
        encode: Runs the encoder, where there is one.
        encoder_lengths: Padded lengths of an encoder's input, shortest first.
        decoder_prompt: What the decoder reads before its answer, where there is an
            encoder.
        rules: What every answer has to keep to.
        guess: Guesses the tokens that a decode step runs ahead; None where a row's own
            tokens say enough.
        processors: Steps of choosing that requests may ask for, with their names.
        token_axes: Of each leaf of the cache, which dimensions of a page count its
            tokens, from the outside in; None where pages are not to be taken out.
    """

    init_cache: InitCache
    run: Run
    read: Read
    copy_pages: CopyPages
    cache_axes: Callable[[tuple[int, ...]], Axes]
    page_size: int
    max_len: int
    vocab_size: int
    chunk: int | None = None
    encode: Encode | None = None
    encoder_lengths: tuple[int, ...] = ()
    decoder_prompt: tuple[int, ...] = ()
    rules: AnswerRules = AnswerRules()
    guess: Guess | None = None
    processors: tuple[tuple[str, LogitsProcessor], ...] = ()
    token_axes: TokenAxes | None = None

    def extend(
        self, params: Params, cache: Cache, batch: TokenBatch
    ) -> tuple[Float[Array, "rows reads vocab"], Cache]:
        """Runs a batch and reads it where it says; see `Run`."""
        hidden, cache = self.run(params, cache, batch)
        return self.read(params, hidden, batch.logits_at), cache
