"""The mark of tests that need the real default model."""

import importlib.metadata

import pytest

from tokenmill.models import default


def _installed() -> bool:
    try:
        return bool(importlib.metadata.files(default.WHEEL))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_the_default_model = pytest.mark.skipif(
    not _installed(), reason=f"the default model is not installed: {default.INSTALL}"
)
