"""How one of our weights is put together from the tensors of a file."""

from typing import NamedTuple


class Part(NamedTuple):
    """One tensor of a file, `name.weight` and, where the model has one, `name.bias`.

    Attributes:
        interleaved: A head's rotated pairs lie side by side, not half a head apart.
    """

    name: str
    interleaved: bool = False


class PartTable(NamedTuple):
    """The tensors of one layer."""

    attention_norm: Part
    qkv: tuple[Part, Part, Part]
    out: Part
    mlp_norm: Part
    gate_up: tuple[Part, Part]
    down: Part


class OuterParts(NamedTuple):
    """The tensors outside the layers."""

    embedding: Part
    norm: Part
    head: Part


GGUF_OUTER = OuterParts(Part("token_embd"), Part("output_norm"), Part("output"))
HUGGINGFACE_OUTER = OuterParts(
    Part("model.embed_tokens"), Part("model.norm"), Part("lm_head")
)
