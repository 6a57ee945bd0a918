"""Pictures for people: feature maps, projections of a cache, contact sheets.

Begin with `feature_maps.py` for one image, `projections.py` for a cache, `contact_sheet.py` for
what a search found. Files named `plot_*` draw with matplotlib, which is an extra.
"""
