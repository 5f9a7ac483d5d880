"""Where conf/, experiments/ and blueprints/ are: in a checkout, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

from esper.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder ``name`` that ships with Esper.

    A checkout comes first, so that an editable install uses the files that are being edited. It is known by
    its ``pyproject.toml``: beside an installed package lies whatever else is installed.

    Raises:
        ConfigError: the installation has no such folder.
    """
    checkout = _PACKAGE.parent
    roots = [checkout] if (checkout / "pyproject.toml").is_file() else []
    for root in [*roots, _PACKAGE / "share"]:
        if (root / name).is_dir():
            return root / name
    raise ConfigError(
        f"this installation has no folder {name!r} beside {_PACKAGE} or in {_PACKAGE / 'share'}",
        hint="install it again: pip install --force-reinstall esper-morph",
    )
