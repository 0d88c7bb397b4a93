"""Speculative decoding for the model in this folder; gkt.toml beside this folder says how.

Needs: pip install 'gkt-plugins[transformers]'
"""

try:
    from gkt_transformers.folder import generate
except ImportError as exc:
    raise ImportError("this model's generate needs gkt: pip install 'gkt-plugins[transformers]'") from exc

__all__ = ["generate"]
