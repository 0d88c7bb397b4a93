"""The OpenAI-compatible front door: guidance for whoever points ``base_url`` here.

``app.build_app`` makes the application, ``serving.serve`` runs it. A driver of the guidance machine, nothing more: what
an answer is made of is decided in :mod:`gkt_plugins.guidance`, what it looks like in :mod:`gkt_plugins.openai_wire`.
"""
