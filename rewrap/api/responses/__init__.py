"""The Responses API: one more surface in front of any backend."""
