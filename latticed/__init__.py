"""latticed: run plugins on a Linux host without trusting them blindly."""

from importlib import metadata

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":  # read on demand: a metadata look-up costs latticectl 10 ms
        return metadata.version("latticed")
    raise AttributeError(name)
