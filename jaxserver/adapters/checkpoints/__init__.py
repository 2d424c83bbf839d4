"""Finds models, fetches them where they are not here, and reads their files."""
