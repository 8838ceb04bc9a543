"""Tables: the columns that a model takes, and the rows of a request as the model's input.

* `columns`: the specification of each column, read from the configuration;
* `table`: a checked row as numbers; many rows as the model's input;
* `bodies`: the rows in the body of a request, JSON, CSV or ``.npy``;
* `handler`: the common parts of the handlers of tables.
"""
