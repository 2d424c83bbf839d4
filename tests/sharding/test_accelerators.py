"""What is built for several GPUs, emulated here, against one CPU."""

import numpy as np
import pytest

from tests.sharding.models import ON_GPUS, ONE, WISHES, Shape, answers


@pytest.mark.parametrize("shape", [ONE, (2, 2, 2), (1, 8, 1), (1, 1, 8)], ids=str)
def test_answers_are_those_of_a_cpu(shape: Shape) -> None:
    found, expected = answers(ON_GPUS, shape), answers("native", ONE)
    rows = list(WISHES)
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(
        found.logits[rows], expected.logits[rows], atol=1e-4, rtol=0
    )
