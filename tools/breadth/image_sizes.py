"""Sizes of types that read images: what convolutions, pyramids and windows of a small model fit into each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["IMAGE_SIZES", "OWN_IMAGES"]

OWN_IMAGES: Mapping[str, int] = {"depth_pro": 160}
"""Height and width of the image of a type whose configuration does not say it, where not any will do."""

_STAGES = {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1]}

_BACKBONE = {"image_size": 96, "backbone_config": {"model_type": "resnet", "out_features": ["stage4"], **_STAGES}}
"""Of a detector: its default needs a package of its own (timm), and it takes any of the library's."""

_LARGER = {"image_size": 64}
"""Of a pyramid, whose last stage has a few places left."""

_WINDOWS = {"embed_dim": 48, "window_size": 2, "image_size": 64}

IMAGE_SIZES: Mapping[str, Mapping[str, Any]] = {
    "bit": {**_STAGES, "num_groups": 4},
    "conditional_detr": _BACKBONE,
    "convnext": _LARGER,
    "convnextv2": _LARGER,
    "cvt": {"embed_dim": [32, 64, 96], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "image_size": 64},
    "dab-detr": _BACKBONE,
    "deformable_detr": {
        **_BACKBONE, "num_feature_levels": 3,
        "backbone_config": {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"], **_STAGES},
    },
    "depth_pro": {
        "patch_size": 40, "fusion_hidden_size": 32, "intermediate_feature_dims": [16, 16],
        "scaled_images_feature_dims": [16, 16, 8], "intermediate_hook_ids": [1, 0],
    },
    "detr": _BACKBONE,
    "dinov3_convnext": _LARGER,
    "donut-swin": {**_WINDOWS, "hidden_size": 96},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "image_size": 64, "hidden_dim": 320},
    "focalnet": _LARGER,
    "hiera": {"image_size": [64, 64], "patch_size": [7, 7], "depths": [1, 1, 1, 1]},
    "levit": {"image_size": 64, "patch_size": 16},
    "llama4_vision_model": {
        "image_size": 48, "intermediate_size": 256, "projector_input_dim": 64, "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
    "mobilevitv2": {"image_size": 64, "patch_size": 2},
    "poolformer": _LARGER,
    "pvt": _LARGER,
    "regnet": {**_STAGES, "groups_width": 16},
    "resnet": _STAGES,
    "swin": {**_WINDOWS, "hidden_size": 96},
    "swin2sr": {**_WINDOWS, "patch_size": 1, "image_size": 16, "depths": [2, 2], "num_heads": [2, 2]},
    "swinv2": {**_WINDOWS, "hidden_size": 96},
    "table-transformer": _BACKBONE,
    "timm_backbone": {"backbone": "test_resnet"},
    "timesformer": {"num_frames": 2},
    "videomae": {"num_frames": 4, "decoder_num_hidden_layers": 1},
    "videoprism_vision_model": {
        "num_frames": 3, "tubelet_size": [1, 8, 8], "num_spatial_layers": 2, "num_temporal_layers": 1,
    },
    "vjepa2": {
        "crop_size": 40, "frames_per_clip": 4, "num_pooler_layers": 1, "pred_hidden_size": 48,
        "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1,
    },
    "vivit": {"num_frames": 4, "image_size": 48},
}  # fmt: skip
"""Entries by type."""
