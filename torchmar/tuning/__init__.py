"""Find the number of workers, the threads and the batch size with which an archive meets a latency target.

Few settings are measured: most are predicted.

* `torchmar.tuning.target`: the target, ``p99<50ms``, and what is optimised within it;
* `torchmar.tuning.space`: the settings, and the grid of them;
* `torchmar.tuning.profile`: batches that are timed in a worker process;
* `torchmar.tuning.service_model`: the time of a batch against its size, fitted to these;
* `torchmar.tuning.simulation`: the queues and workers of a server, simulated;
* `torchmar.tuning.highest_rate`: the highest rate at which a simulated server keeps a bound;
* `torchmar.tuning.system_model`: the simulated server of each setting, corrected by trials (`calibration`);
* `torchmar.tuning.prediction`: what a setting would do;
* `torchmar.tuning.search`: which settings are measured, and when the search ends;
* `torchmar.tuning.limits`: at which rates a setting is measured, to find its highest;
* `torchmar.tuning.live_server`: a server whose settings are changed and measured;
* `torchmar.tuning.trials`: measured trials, and their record;
* `torchmar.tuning.tuned_archive`, `options`, `identity`: the archive, the options, and by what a record is found again;
* `torchmar.tuning.tuner`: all of this for one archive, which becomes a `torchmar.tuning.completed.Tuning`;
* `torchmar.tuning.explanation`, `front_picture`, `evidence`: why a setting was chosen, as text, picture and JSON;
* `torchmar.tuning.recipe_writing`: the result in the recipe, by `torchmar.yaml_editing`.
"""
