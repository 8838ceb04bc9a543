"""Build, prove and serve TorchServe model archives (``.mar``).

The package is a pipeline; each step is a module that can be used alone:

* `torchmar.recipe` reads ``archive.yaml``, the description of one archive;
* `torchmar.archive` packs a recipe into a ``.mar`` and opens, lists and extracts one;
* `torchmar.worker` runs an archive in a process of its own, without a server;
* `torchmar.engines.torchserve` starts and stops the real TorchServe;
* `torchmar.management` registers and scales models on a running server;
* `torchmar.inference` asks it for predictions and explanations.

Everything that can go wrong is a `torchmar.errors.TorchmarError`.
Nothing here imports torch: handlers run only inside worker processes.
"""

__version__ = "0.1.0"
