"""Tables: what columns a model takes, and the rows of a request as what it sees of them.

* `columns`: the specification of each column, read from the configuration;
* `table`: a row to numbers, checked; many of them to the model's input;
* `bodies`: the rows in the body of a request, JSON, CSV or ``.npy``;
* `handler`: what the handlers of tables have in common.
"""
