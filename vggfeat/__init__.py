"""Features of any layers of a VGG network, from folders of images into one memory-mapped file."""

from vggfeat._version import __version__

__all__ = ["__version__"]
