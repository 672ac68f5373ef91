"""Shared fixtures: where golden data lies."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the oracle's golden data and real samples, beside the checkout; tests skip where it is absent."""
    path = Path(os.environ.get("VEXPRESS_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no shared/ folder beside the checkout (set VEXPRESS_SHARED to use another)")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Golden arrays that are committed with the tests."""
    return ROOT / "tests" / "golden"
