"""The core runs where nothing but what it is made of is installed."""

import subprocess
import sys
import textwrap

ITS_PACKAGES = {"jax", "jaxlib", "numpy", "jaxtyping", "chex"}
THEIR_PACKAGES = {
    *("absl", "ml_dtypes", "opt_einsum", "scipy", "toolz", "typing_extensions"),
    "wadler_lindig",
}
THEIR_OPTIONS = {"etils", "filelock", "pygments", "zstandard"}  # where installed
SCRIPT = textwrap.dedent(
    """
    import sys

    import jax.numpy as jnp
    import jaxserver.core.loading
    import jaxserver.core.memory
    import jaxserver.core.scheduler
    import jaxserver.core.steps
    from jaxserver.core.config import ModelConfig
    from jaxserver.core.params import init_params
    from jaxserver.core.transformer import transformer_fns
    from jaxserver.ports.model import TokenBatch

    sizes = dict(vocab_size=64, num_layers=1, embed=32, mlp=48, max_len=128)
    config = ModelConfig(**sizes, num_heads=4, num_kv_heads=2, head_dim=8)
    fns, params = transformer_fns(config, max_len=128), init_params(config, seed=0)
    one = jnp.array([1])
    batch = TokenBatch(one[None], one - 1, one, None, one[None] - 1)
    logits, _ = fns.extend(params, fns.init_cache(num_pages=1), batch)
    assert logits.shape == (1, 1, 64)
    files = [str(getattr(m, "__file__", None)) for m in sys.modules.values()]
    for name, file in zip(sys.modules, files):
        if "site-packages" in file:
            print(name.partition(".")[0])
    """
)


def test_the_core_needs_jax_numpy_jaxtyping_and_chex_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert imported >= ITS_PACKAGES
    hooks = {name for name in imported if name.startswith("_")}  # of the installers
    assert imported - hooks <= ITS_PACKAGES | THEIR_PACKAGES | THEIR_OPTIONS
