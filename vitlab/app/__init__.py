"""The demo: a page in the browser, and POST /predict for programs."""
