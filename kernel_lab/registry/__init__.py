"""Registries: the client that fetches and sends images, and a small server."""
