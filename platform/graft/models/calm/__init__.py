"""CALM: frozen language models composed by trained cross-attention."""

from graft.models.calm.model import CalmForCausalLM

__all__ = ["CalmForCausalLM"]
