"""Tiny SAM2 checkpoints in the published format: one with random weights, one that finds whatever is red.

The red one's stem passes redness on, everything between is zero, and each mask token asks for it: what it is
told and what it remembers change nothing, so that its masks are known.
"""

import json
from pathlib import Path

import torch
from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

SIDE = 128  # pixels of the network's input
STRIDE = 4  # of them to a mask's pixel
WIDTH = 128  # channels; the memory attention needs a multiple of 64, the decoder twice that for pointers
REDNESS = (4.0, -6.0, -6.0)  # weights of R, G, B after normalisation; a red pixel gets about 26
THRESHOLD = 13.0


def config() -> Sam2VideoConfig:
    """facebook/sam2-hiera-large's, as narrow and as shallow as the classes allow."""
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[SIDE // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=WIDTH,
    )
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": WIDTH, "mlp_dim": 32, "num_attention_heads": 2},
        image_size=SIDE,
        enable_occlusion_spatial_embedding=False,  # like the published SAM2.0, unlike 2.1
        enable_temporal_pos_encoding_for_object_pointers=False,
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[SIDE // 16, SIDE // 16],
        memory_encoder_hidden_size=WIDTH,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=32,
    )


def random_network(seed: int = 0) -> Sam2VideoModel:
    """Random weights, sure that there is an object."""
    torch.manual_seed(seed)
    network = Sam2VideoModel(config()).eval()
    with torch.no_grad():
        network.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)
    return network


def red_network() -> Sam2VideoModel:
    """Its masks are what is red, whoever is asked for."""
    network = random_network()
    decoder, vision = network.mask_decoder, network.vision_encoder
    with torch.no_grad():
        for part in (vision, decoder.upscale_conv2, decoder.conv_s0, decoder.output_hypernetworks_mlps):
            for parameter in part.parameters():
                parameter.zero_()
        stem = vision.backbone.patch_embed.projection  # 7 × 7, stride 4, padding 3
        stem.weight[0, :, 3:5, 3:5] = torch.tensor(REDNESS)[:, None, None] / 4
        vision.neck.convs[-1].weight[0, 0] = 1.0  # the finest level
        decoder.conv_s0.weight[0, 0] = 1.0
        decoder.conv_s0.bias[1] = THRESHOLD
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.proj_out.bias[:2] = torch.tensor([1.0, -1.0])
        head = decoder.pred_obj_score_head.proj_out
        head.weight.zero_()
    return network


def save(network: Sam2VideoModel, folder: Path, *, side: int = SIDE) -> Path:
    """Write a checkpoint as facebook/sam2-hiera-large is published; returns its folder."""
    network.save_pretrained(folder)
    size = {"height": side, "width": side}
    pixels = {
        "size": size,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "processor_class": "Sam2VideoProcessor",
    }
    image = {
        "image_processor_type": "Sam2ImageProcessorFast",
        "mask_size": {"height": side // STRIDE, "width": side // STRIDE},
    }
    files = {
        "preprocessor_config.json": pixels | image,
        "video_preprocessor_config.json": pixels | {"video_processor_type": "Sam2VideoVideoProcessor"},
        "processor_config.json": {
            "processor_class": "Sam2VideoProcessor",
            "target_size": side,
            "point_pad_value": -10,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder
