"""`report.html`: one page about a run, made from its result folder.

`verdict.py` is what it says first, `figures.py` its charts and tables, `samples.py` the data of its
sample browser, whose code is in `samples.js`. `report.html` is the template.
"""
