"""Lets Hydra find the user's own variants beside the project's."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from benchmarks.core.variants import extra_folder


class ExtraVariants(SearchPathPlugin):
    """Adds the `conf/` of the folder that SCALEBENCH_EXTRA names."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra's hook."""
        folder = extra_folder()
        if folder:
            search_path.append("scalebench-extra", f"file://{folder / 'conf'}")
