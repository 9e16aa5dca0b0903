"""Answering people: chats to inputs and back, requests that share a batch, and an HTTP server."""
