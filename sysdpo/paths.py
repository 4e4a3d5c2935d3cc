"""Where the files lie that come with the package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

ASSETS = PACKAGE / "assets"
"""Shipped weights, architectures, passages and styles."""

CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The configuration: inside the package where it was installed from a wheel, at the top of the repository otherwise."""
