"""Find the number of workers, the number of threads and the batch size with which an archive meets a latency target.

Only few settings are measured; most are predicted.

* `torchmar.tuning.target`: the target, ``p99<50ms``, and the objective that is optimised within it;
* `torchmar.tuning.space`: the settings, and their grid;
* `torchmar.tuning.profile`: timed batches in a worker process;
* `torchmar.tuning.service_model`: the time of a batch against its size, fitted to timed batches;
* `torchmar.tuning.simulation`: a simulation of a server's queues and workers;
* `torchmar.tuning.highest_rate`: the highest rate at which a simulated server meets a latency target;
* `torchmar.tuning.system_model`: the simulated server of each setting, corrected by trials (`calibration`);
* `torchmar.tuning.prediction`: the predicted latency and rate of a setting;
* `torchmar.tuning.measurements`: the trials of a search, and the best settings among them;
* `torchmar.tuning.search`: the choice of the settings to measure, and the end of the search;
* `torchmar.tuning.limits`: the rates at which a setting is measured, to find its highest;
* `torchmar.tuning.live_server`: a server whose settings are changed and measured;
* `torchmar.tuning.trials`: measured trials, and their record;
* `torchmar.tuning.tuned_archive`, `options`, `identity`: the archive, the options, and the key of a record;
* `torchmar.tuning.tuner`: the tuning of one archive, with a `torchmar.tuning.completed.Tuning` as its result;
* `torchmar.tuning.explanation`, `front_picture`, `evidence`: the reasons for a setting, as text, picture and JSON;
* `torchmar.tuning.recipe_writing`: the result in the recipe, by `torchmar.yaml_editing`.
"""
