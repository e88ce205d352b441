"""The report as a page: one HTML file without any outside request.

page.py      everything the template shows, from the report, the samples and the trees
explorer.py  a tree as code lines with its risk nodes and branches
words.py     names of metrics, places and weaknesses; differences in plain words
*.j2, *.css, *.js  the page itself; jinja2 escapes whatever a model wrote
"""
