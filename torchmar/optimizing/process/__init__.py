"""The code of the processes of an optimisation, which load an archive's files and may import torch.

``python -m torchmar.optimizing.process STEP JOB RESULT`` runs one step in a process of its own, whose job and result
are JSON files:

* ``describe``: the packages of this Python;
* ``capture``: the inputs that the handler passes to its model for each request;
* ``make``: the files of a variant, by the module of its family;
* ``run``: a variant's answers and times, loaded as a worker loads it;
* ``explain``: the handler's explanations with a variant's weights.

The archive's own copy of ``torchmar_handlers`` is imported, as a worker imports it. Steps of an archive with a
``runtime`` run in its environment (``start.py``): this package and the modules of torchmar that it imports need only
the standard library, NumPy and psutil, and torch where they import it.
"""
