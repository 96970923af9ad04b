"""Figures of a store, as PNG and SVG: what a table cannot show.

`drawing` renders and has the looks; `curves` draws accuracy on the way and the loss of steps, `ranking` scores against
accuracy, `pictures` synthetic images side by side, `attention` where a network looks; `write` makes the folder with its page.
"""
