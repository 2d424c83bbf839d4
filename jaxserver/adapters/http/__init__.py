"""Serves a `Generator` over HTTP: the original's routes and OpenAI's."""
