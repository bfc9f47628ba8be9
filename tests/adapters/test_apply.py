"""Adapters at the timesteps at which they hold."""

import numpy as np

from show1_jax.adapters.apply import adapted
from show1_jax.adapters.files import Adapter
from show1_jax.stages.sampling import ByTimestep, params_at


def test_adapters_hold_at_their_timesteps_and_add_up():
    params = {"a": np.zeros((2, 3), np.float32), "b": np.ones((2, 3), np.float32)}

    def adapter(size, timesteps):
        return Adapter({"a": (np.full((2, 3), size, np.float32),)}, timesteps=timesteps), 0.5

    found = adapted(params, [adapter(2, None), adapter(20, (150, 1000)), adapter(200, (100, 500))])
    for timestep, expected in ((0, 1), (99, 1), (100, 101), (150, 111), (499, 111), (500, 11)):
        assert params_at(found, timestep)["a"][0, 0] == expected
        assert params_at(found, timestep)["b"] is params["b"]
    # One tree for each set of adapters, though there are five parts.
    assert isinstance(found, ByTimestep)
    assert [first for first, _ in found.parts] == [0, 100, 150, 500, 1000]
    assert found.parts[0][1] is found.parts[-1][1]
    assert not isinstance(adapted(params, [adapter(2, None)]), ByTimestep)
    assert adapted(params, []) is params
