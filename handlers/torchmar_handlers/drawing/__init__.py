"""Pictures of attributions, as PNG: red speaks for, blue against.

* `heatmap`: an image, beside its heat map;
* `words`: a text whose tokens are coloured;
* `bars`: the features of a table's row, the strongest first.

Each has a ``draw`` that returns the bytes of a file. `page` is what they share. Pillow and NumPy
are all it takes; the same arguments give the same bytes.
"""
