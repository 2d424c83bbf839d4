"""What devices tell each other in a step."""

import math
import re

import jax
import pytest

from tests.sharding.models import SLOTS, Shape, tiny

GATHERED = re.compile(r"= \w+\[([\d,]+)\]\S* all-gather\(")


@pytest.mark.parametrize("kind", ["native", "native in int8"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_no_device_gets_what_the_others_have_cached(kind: str, shape: Shape) -> None:
    steps = tiny(kind, shape).steps
    smallest = min(leaf.size for leaf in jax.tree.leaves(steps.state.cache))
    for which, size in (("prefill", 24), ("decode", SLOTS)):
        text = steps.get(which, size).as_text()
        assert text is not None
        told = GATHERED.findall(text)
        sizes = [math.prod(map(int, sides.split(","))) for sides in told]
        assert max(sizes, default=0) < smallest // 2
