"""One module for each model of concurrency; each describes itself and has `serve(app, listener)`."""
