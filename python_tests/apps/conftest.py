"""What tests of the applications share."""

import pytest
import torch

from ficoco_ext.apps import checkpoint


@pytest.fixture(scope="module")
def embedded():
    """The embedded model, loaded for one file of tests."""
    torch.set_num_threads(1)
    return checkpoint.load(None, torch.float32, torch.device("cpu"))
