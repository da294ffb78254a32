"""Pages about runs: one self-contained HTML file each, which needs no network.

A page's content is a template that extends `base.html` (`document.py`). Its charts are SVG with a
table beside each (`charts.py`). All text is shown as text (`text.py`); large data lies in the page
compressed, and is read by `data.js` when it is needed (`blocks.py`).
"""
