"""One module for each kind of stage: how its rows are computed."""
