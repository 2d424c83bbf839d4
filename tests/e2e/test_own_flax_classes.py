"""Classes of the user's own, which the library has never seen, are served whole.

One keeps a cache as transformers' Flax classes do, the other has none.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import FlaxPreTrainedModel, PretrainedConfig
from transformers.modeling_flax_outputs import FlaxCausalLMOutput

from tests.flax_answers import (
    POSITIONS,
    PROMPTS,
    VOCAB,
    answered,
    assert_answers_are,
    chosen,
    pieces_of,
    serving,
)
from tests.tiny_flax import TinyFlax, enlarged

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated")
WIDTH, HEADS = 32, 4


class OwnConfig(PretrainedConfig):  # type: ignore[misc]  # of an untyped package
    model_type = "own"

    def __init__(self, depth: int = 2, **rest: Any) -> None:
        self.depth, self.vocab_size = depth, VOCAB
        self.max_position_embeddings = POSITIONS
        super().__init__(**{"eos_token_id": 2, **rest})


class OwnAttention(nn.Module):  # type: ignore[misc]
    """Writes its keys and values where the cursor of its cache stands."""

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any, mask: Any, start_a_cache: bool) -> Any:
        split = (HEADS, WIDTH // HEADS)
        query, key, value = (nn.DenseGeneral(split, name=n)(x) for n in "qkv")
        is_cached = self.has_variable("cache", "cached_key")
        time = x.shape[1]
        seen = jnp.tril(jnp.ones((time, time), jnp.bool_))
        if is_cached or start_a_cache:
            keys = self.variable("cache", "cached_key", jnp.zeros_like, key)
            values = self.variable("cache", "cached_value", jnp.zeros_like, value)
            at = self.variable("cache", "cache_index", lambda: jnp.zeros((), jnp.int32))
        if is_cached:
            place = (0, at.value, 0, 0)
            key = jax.lax.dynamic_update_slice(keys.value, key, place)
            value = jax.lax.dynamic_update_slice(values.value, value, place)
            queries = at.value + jnp.arange(time)
            seen = jnp.arange(key.shape[1])[None, :] <= queries[:, None]
            keys.value, values.value, at.value = key, value, at.value + time
        seen = seen[None, None] & (mask[:, None, None, : key.shape[1]] > 0)
        weights = nn.dot_product_attention_weights(query, key, mask=seen)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.DenseGeneral(WIDTH, axis=(-2, -1), name="out")(mixed)


class OwnModule(nn.Module):  # type: ignore[misc]
    config: OwnConfig
    dtype: Any = jnp.float32

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(
        self, ids: Any, mask: Any, positions: Any, start_a_cache: bool = False
    ) -> Any:
        known = self.config.max_position_embeddings
        x = nn.Embed(VOCAB, WIDTH)(ids) + nn.Embed(known, WIDTH)(positions)
        for _ in range(self.config.depth):
            x += OwnAttention()(nn.LayerNorm()(x), mask, start_a_cache)
            x += nn.Dense(WIDTH)(nn.tanh(nn.Dense(48)(nn.LayerNorm()(x))))
        return nn.Dense(VOCAB)(nn.LayerNorm()(x))


class FlaxOwnPreTrainedModel(FlaxPreTrainedModel):  # type: ignore[misc]
    config_class = OwnConfig
    base_model_prefix = "own"
    main_input_name = "input_ids"
    module_kind: Any = OwnModule

    def __init__(
        self, config: OwnConfig, seed: int = 0, dtype: Any = jnp.float32, **rest: Any
    ) -> None:
        module = self.module_kind(config, dtype=dtype)
        shape = {"input_shape": (1, 1), "seed": seed, "dtype": dtype}
        super().__init__(config, module, **shape, **rest)

    def init_weights(self, rng: Any, input_shape: Any, params: Any = None) -> Any:
        ids = jnp.zeros(input_shape, jnp.int32)
        return self.module.init(rng, ids, jnp.ones_like(ids), ids)["params"]

    def can_generate(self) -> bool:
        return True

    def whole(self, ids: Any, params: Any) -> Any:
        positions = jnp.arange(ids.shape[1])[None]
        inputs = {"params": params or self.params}
        logits = self.module.apply(inputs, ids, jnp.ones_like(ids), positions)
        return FlaxCausalLMOutput(logits)


class FlaxOwnModel(FlaxOwnPreTrainedModel):
    """Without a cache."""

    def __call__(
        self, input_ids: Any, params: Any = None, return_dict: bool = True
    ) -> Any:
        return self.whole(input_ids, params)


class FlaxOwnCachedModel(FlaxOwnPreTrainedModel):
    """With one."""

    def init_cache(self, batch_size: int, max_length: int) -> Any:
        ids = jnp.ones((batch_size, max_length), jnp.int32)
        key = jax.random.key(0)
        return self.module.init(key, ids, ids, ids, start_a_cache=True)["cache"]

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        params: Any = None,
        past_key_values: Any = None,
        return_dict: bool = True,
    ) -> Any:
        if past_key_values is None:
            return self.whole(input_ids, params)
        inputs = {"params": params or self.params, "cache": past_key_values}
        logits, changed = self.module.apply(
            inputs, input_ids, attention_mask, position_ids, mutable=["cache"]
        )
        output = FlaxCausalLMOutput(logits)
        output["past_key_values"] = changed["cache"]
        return output


@pytest.mark.parametrize("kind", [FlaxOwnModel, FlaxOwnCachedModel])
def test_a_class_of_the_users_own_answers_as_it_does_by_itself(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = kind(OwnConfig())
    tiny = TinyFlax(model, enlarged(model.params))
    expected = [chosen(tiny, prompt) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)

    with serving(tiny) as server:
        assert_answers_are(server, expected)
        assert pieces_of(server, PROMPTS[-1]) == 5

    warned = [r for r in caplog.records if "has no cache of its own" in r.message]
    assert len(warned) == (kind is FlaxOwnModel)
    assert np.all([record.levelname == "WARNING" for record in warned])
    assert all("init_cache" in record.message for record in warned)


class SwayingModule(nn.Module):  # type: ignore[misc]
    """What a position is depends on how many there are."""

    config: OwnConfig
    dtype: Any = jnp.float32

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, ids: Any, mask: Any, positions: Any) -> Any:
        share = positions[..., None] / self.config.max_position_embeddings
        x = nn.Embed(VOCAB, WIDTH)(ids) + jnp.sin(share * jnp.arange(WIDTH) * 40)
        x += OwnAttention()(nn.LayerNorm()(x), mask, start_a_cache=False)
        return nn.Dense(VOCAB)(nn.LayerNorm()(x))


class FlaxSwayingModel(FlaxOwnModel):
    module_kind = SwayingModule


def test_a_setting_that_a_class_of_the_users_own_computes_with_is_left_alone() -> None:
    model = FlaxSwayingModel(OwnConfig())
    tiny = TinyFlax(model, enlarged(model.params))
    prompts = PROMPTS[:2]
    expected = [chosen(tiny, prompt) for prompt in prompts]
    with serving(tiny, max_length=64) as server:
        assert [answered(server, [prompt])[0] for prompt in prompts] == expected
