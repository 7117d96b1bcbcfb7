"""The building machine's way to a package index, for use during a build: it must not stay in the image."""

from __future__ import annotations

import configparser
import os
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path

_KEPT = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "timeout", "retries")


def write_index_folder(folder: Path, environment: Mapping[str, str]) -> None:
    """Fill a private folder with `pip.conf` and `certificates.pem`, as far as this machine has such.

    Places on this machine's own disk, which a build does not see, are left out.
    """
    settings = pip_settings(_configuration_files(environment), environment)
    for key in ("index-url", "extra-index-url", "find-links"):
        remote = [place for place in settings.get(key, "").split() if "://" in place and not place.startswith("file:")]
        settings[key] = " ".join(remote)
    lines = [f"{key} = {settings[key]}" for key in _KEPT if settings.get(key)]
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    certificates = (
        settings.get("cert")
        or environment.get("REQUESTS_CA_BUNDLE")
        or environment.get("SSL_CERT_FILE")
        or ssl.get_default_verify_paths().cafile
    )
    if certificates and Path(certificates).is_file():
        (folder / "certificates.pem").write_bytes(Path(certificates).read_bytes())


def pip_settings(files: Iterable[Path], environment: Mapping[str, str]) -> dict[str, str]:
    """Pip's own rule (its user guide, "Configuration"): later files win, and the environment wins over all of them."""
    settings: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file)
        except (OSError, configparser.Error):
            continue  # pip will say so to whom it concerns
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    for name, value in environment.items():
        if name.startswith("PIP_"):
            settings[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return settings


def _configuration_files(environment: Mapping[str, str]) -> list[Path]:
    if (named := environment.get("PIP_CONFIG_FILE")) == os.devnull:
        return []
    home = Path(environment.get("HOME", "/"))
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        config / "pip" / "pip.conf",
    ]
    return [*files, *([Path(named)] if named else [])]
