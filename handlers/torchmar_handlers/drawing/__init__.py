"""Pictures of attributions, as PNG: red is for the target, blue is against it.

* `heatmap`: an image, beside its heat map;
* `words`: a text whose tokens are coloured;
* `bars`: the features of a table's row, the strongest first.

Each module has a function ``draw`` that returns the bytes of a file. `page` has the common parts. Only Pillow and
NumPy are needed; the same arguments give the same bytes.
"""
