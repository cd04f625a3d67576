"""`braid watch`: a run in the terminal, with curves that grow as it does."""
