"""What `config.json` says of the weights beside it."""

from __future__ import annotations

import json
from typing import Any

from baleen.model.config import ModelConfig
from baleen.model.formats.stored import Format


def config_text(config: ModelConfig, before: str | None, format: Format) -> str:
    """`config.json` for weights in a format; the folder's own text if that says it already."""
    data = json.loads(before) if before else {}
    if data:
        data["num_nextn_predict_layers"] = config.num_nextn_predict_layers
    if "compress_ratios" not in data or ModelConfig.from_hf(data) != config:
        data = config.to_hf()
    wanted: dict[str, Any] = {"torch_dtype": "float32" if format is Format.FP32 else "bfloat16"}
    if format in (Format.FP8, Format.FP4):
        wanted["expert_dtype"] = format.value
        wanted["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "scale_fmt": "ue8m0",
        } | data.get("quantization_config", {})
    else:
        for key in ("expert_dtype", "quantization_config"):
            data.pop(key, None)
    data.pop("dtype", None)  # transformers' newer spelling of torch_dtype
    data |= wanted
    if before and data == json.loads(before):
        return before
    return json.dumps(data, indent=2) + "\n"
