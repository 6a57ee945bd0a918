"""The version, in one place: the build and the file format read it from here."""

__version__ = "0.1.0"
