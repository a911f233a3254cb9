"""A client that is not installed skips its tests and says how to install it, unless CI requires all of them."""

import pytest
from helpers import clients


def test_a_missing_client(monkeypatch):
    monkeypatch.delenv("FICOCO_REQUIRE_CLIENTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r'needs no_such_client; pip install "ficoco_ext\[clients\]"'):
        clients.need("no_such_client")
    monkeypatch.setenv("FICOCO_REQUIRE_CLIENTS", "1")
    with pytest.raises(ModuleNotFoundError, match="no_such_client"):
        clients.need("no_such_client")
