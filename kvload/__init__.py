"""kvload: what does KV-cache compression do to my traffic?"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("kvload")
except PackageNotFoundError:  # an uninstalled checkout
    __version__ = "0+unknown"

# A checkout has links to the three folders beside this one, and a wheel has the folders themselves. An unpacked source
# archive, or a checkout where links cannot be made, has neither: they are then found where they are.
if not (Path(__file__).parent / "servers").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

__all__ = ["__version__"]
