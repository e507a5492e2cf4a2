"""The network and its weights. Needs the extra ``model`` (torch, safetensors)."""

from baleen.model.config import LayerKind, ModelConfig
from baleen.model.init import initialize
from baleen.model.trace import Trace
from baleen.model.transformer import Transformer

__all__ = ["LayerKind", "ModelConfig", "Trace", "Transformer", "initialize"]
