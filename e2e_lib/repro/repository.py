"""Where a notebook finds the repository. Nothing here is slow to import: every notebook begins with it."""

import os
from pathlib import Path


def enter_repository() -> Path:
    """Makes the repository's root the working folder, from any folder in it. Raises FileNotFoundError."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "e2e_lib").is_dir():
            os.chdir(folder)
            return folder
    raise FileNotFoundError(f"{Path.cwd()}: this is not inside the repository; start Jupyter from its root")
