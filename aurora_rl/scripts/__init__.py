"""Bodies of `recipes/*.py` and `data_prep/*.py`: a module a script, which parses a command line and runs."""
