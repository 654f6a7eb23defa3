"""kvload: what does KV-cache compression do to my traffic?"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kvload")
except PackageNotFoundError:  # an uninstalled checkout
    __version__ = "0+unknown"

__all__ = ["__version__"]
