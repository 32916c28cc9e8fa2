"""One thread: the tiny models are too small to share, and several test processes share the cores."""

import pytest
import torch

import tiny

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def shared_models_stay_as_they_are():
    """Tests of one process share tiny models, so a test that changes one breaks others far away."""
    yield
    changed = [name for name, model, before in tiny.MADE if tiny.total(model) != before]
    assert not changed, f"a test of this module changed the weights of the shared models {changed}"
