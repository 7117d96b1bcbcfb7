"""The report as one HTML page that needs no network: text and tables by Jinja2, charts by Plotly.

`assemble` puts the page together; `rules` holds the sweep against the twelve rules of Hoefler and Belli; `scaling`,
`grid`, `spent` and `study` turn the report into charts. Like tables and figures, all is made from `Report` alone, and
from what `analysis.recommend` says.
"""
