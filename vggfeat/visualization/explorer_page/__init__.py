"""Template, style and script of the page that `explorer` writes."""
