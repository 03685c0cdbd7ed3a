"""Recordings of exchanges with upstreams: written by RECORD, served by REPLAY.

    exchange.py   one exchange as a TOML file
    matching.py   which recording answers a request, and the difference between two requests
    library.py    the folder of recordings
    client.py     the clients that record and replay

Imports types, leaf files and the room of upstreams.
"""
