"""Pictures for people: feature maps, projections of a cache, contact sheets.

Begin with `feature_maps.py` for one image, `projections.py` for a cache, `contact_sheet.py` for
the results of a search. Files named `plot_*` draw with matplotlib, which is an extra.

Public: `contact_sheet.Query`, `contact_sheet.Result` and `contact_sheet.contact_sheet`.
"""
