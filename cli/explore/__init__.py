"""Play with the flow, the processes and the models in a browser, on this machine alone."""
