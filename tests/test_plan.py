"""The plan in numbers: what is counted equals a closed form, and what follows from it follows."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from math import ceil, prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from configs import with_dit

from world_model.config import (
    ChannelConfig,
    DiTConfig,
    EmbeddingConfig,
    HistoryConfig,
    LayerConfig,
    ModelConfig,
    TextConfig,
    Tiers,
    VAEConfig,
    VideoConfig,
)
from world_model.cost import costs
from world_model.cost import plan as command
from world_model.cost.costs import (
    Block,
    Footprint,
    Part,
    Training,
    backward_cost,
    count_block,
    count_decoder,
    count_parameters,
    count_text,
    forward_cost,
)
from world_model.cost.count import Cost, count, size_of
from world_model.cost.plan import DEVICES, Plan, make_plan, report, resized
from world_model.dit import DiT
from world_model.packing import Group, released_packing
from world_model.presets import get_preset
from world_model.priors.config import scene_of, with_scene
from world_model.priors.places import BANDS, LIGHTS, WEATHERS
from world_model.tscm import History

KEYS = Path(os.environ.get("YUME_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures")) / "keys"

# yume-5b's code paths at a hundred-thousandth of its size
SMALL = ModelConfig(
    name="small",
    video=VideoConfig(height=64, width=96, fps=16, block_latents=8, start_latents=5),
    dit=DiTConfig(
        dim=48,
        heads=2,
        layers=4,
        latent_channels=8,
        text_dim=16,
        layer=LayerConfig(ffn_dim=80),
        embedding=EmbeddingConfig(freq_dim=16),
        history=HistoryConfig(channel=ChannelConfig(dim=24, heads=2, patch=(8, 4, 4))),
    ),
    vae=VAEConfig(kind="patch", spatial_stride=8, temporal_stride=4, latent_channels=8, width=8, depth=1),
    text=TextConfig(kind="hashed", dim=16, event_tokens=10, action_tokens=6),
)


def variant(config: ModelConfig = SMALL, **changes) -> ModelConfig:
    return with_dit(config, **changes)


# ---- the tools --------------------------------------------------------------------------------------------------------


def test_attention_is_counted_and_its_scores_take_no_memory():
    query, key = torch.empty(2, 3, 50, 8, device="meta"), torch.empty(2, 3, 70, 8, device="meta")
    out, cost = count(lambda: F.scaled_dot_product_attention(query, key, key))
    assert cost.flops == 4 * 2 * 3 * 50 * 70 * 8
    assert out.shape == query.shape
    assert cost.peak < 2 * size_of(query) < 4 * 2 * 3 * 50 * 70  # the scores would be this many bytes
    assert F.scaled_dot_product_attention(*(torch.zeros(1, 1, 2, 2) for _ in range(3))).shape == (
        1,
        1,
        2,
        2,
    )  # restored


def test_bytes_are_those_alive_at_once():
    x = torch.empty(100, device="meta")  # 400 bytes, there before

    def chain() -> torch.Tensor:
        a = x + 1
        b = (a + 1).view(10, 10)
        del a
        return b + 1

    out, cost = count(chain)
    assert cost.peak == 800
    assert size_of(out, [out[:5], {"again": out}], History(x, x, x, x, x)) == 800


# ---- against a closed form --------------------------------------------------------------------------------------------


def closed_form(config: ModelConfig, history: int) -> tuple[int, int, int]:
    """History tokens, and the operations of a block's conditions and of a step, from the sizes alone."""
    c, (rows, columns) = config.dit, config.latent_size
    d, hidden, channel = c.dim, c.layer.ffn_dim, c.history.channel
    assert channel is not None
    tokens = prod(config.token_grid)
    words = config.text.event_tokens + config.text.action_tokens
    packed = embedding = 0
    for group in released_packing(history):
        side, frames, r, q = 2 * group.ratio, group.stop - group.start, rows, columns
        if group.two_stage:
            r, q = ceil(r / 4), ceil(q / 4)
            embedding += frames * r * q * 2 * c.latent_channels**2 * 16
        cells = frames * ceil(r / side) * ceil(q / side)
        packed += cells
        embedding += cells * 2 * c.latent_channels * side**2 * d
    time = 2 * (c.embedding.freq_dim * d + d * d + 6 * d * d)
    z = channel.dim
    kernels = (
        ceil(config.block_latents / channel.patch[0]) * ceil(rows / channel.patch[1]) * ceil(columns / channel.patch[2])
    )
    sums = z * z // channel.heads  # k v^T, all heads

    def layer(length: int, seen: int) -> int:
        own = 8 * length * d * d + 4 * length * seen * d
        return own + 4 * length * d * d + 4 * length * words * d + 4 * length * d * hidden

    conditions = embedding + 2 * words * (c.text_dim * d + d * d) + c.layers * 4 * words * d * d
    conditions += kernels * 2 * c.latent_channels * prod(channel.patch) * z
    # rows of keys and values come in whole eights, so that any number of threads rounds alike
    conditions += c.layers * (ceil(kernels / 8) * 8 * 4 * z * z + kernels * 2 * sums)
    step = tokens * 2 * c.latent_channels * 4 * d + time + tokens * 2 * d * c.latent_channels * 4
    step += c.layers * tokens * (4 * d * z + 6 * z * z + 2 * sums + 2 * sums + 2 * z)
    if c.history.attention == "joint":
        step += time + c.layers * layer(tokens + packed, tokens + packed)
    else:
        conditions += time + (c.layers - 1) * layer(packed, packed) + 4 * packed * d * d  # of the last, keys and values
        step += c.layers * layer(tokens, tokens + packed)
    return packed, conditions, step


@pytest.mark.parametrize(("attention", "history"), [("joint", 345), ("cached", 23)])
def test_counted_operations_equal_a_closed_form(attention, history):
    config = variant(attention=attention)
    block = count_block(config, history)
    expected = closed_form(config, history)
    assert (block.history_tokens, block.conditions.flops, block.step.flops) == expected
    assert block.flops == expected[1] + 4 * expected[2]
    kept = {"joint": block.history_tokens * 48 * 2, "cached": block.history_tokens * 48 * 2 * 2 * 4}
    assert block.held.history == kept[attention]
    assert block.held.text == 16 * 48 * 2 * 2 * 4


def test_carrying_two_layers_on_equals_counting_all():
    """Operations and peaks of a backward pass with checkpointing, on four layers and as continued from two and three."""
    config = variant(layers=4)
    two, three, four = (backward_cost(costs._dit(config, n), 7) for n in (2, 3, 4))
    assert four.flops == two.flops + 2 * (three.flops - two.flops)
    assert four.peak == two.peak + 2 * (three.peak - two.peak)
    # each further layer is computed forwards, again, and backwards at twice the price; of its memory its input stays
    forward = [forward_cost(costs._dit(config, n), 7) for n in (2, 3)]
    assert 3.8 < (three.flops - two.flops) / (forward[1].flops - forward[0].flops) <= 4.0
    rows = prod(config.token_grid) + sum(_tokens(group) for group in released_packing(7))
    assert 2 * 48 * rows <= three.peak - two.peak < 6 * 2 * 48 * rows


def _tokens(group: Group) -> int:
    rows, columns = SMALL.latent_size
    return (group.stop - group.start) * ceil(rows / (2 * group.ratio)) * ceil(columns / (2 * group.ratio))


def test_parameters_are_those_of_the_network():
    with torch.device("meta"):
        dit = DiT(SMALL)
    block = sum(p.numel() for p in dit.layers[0].parameters())
    assert count_parameters(SMALL) == (sum(p.numel() for p in dit.parameters()), block)


# ---- every preset and size --------------------------------------------------------------------------------------------


@pytest.fixture
def quick_samples(monkeypatch) -> None:
    """Looking pixels up is taken apart into hundreds of steps on the meta device, none of which is counted; here it is one."""

    def sampled(picture: torch.Tensor, grid: torch.Tensor, **how: object) -> torch.Tensor:
        return picture.new_empty(*picture.shape[:2], *grid.shape[1:-1])

    monkeypatch.setattr(F, "grid_sample", sampled)


def test_presets_with_warped_frame_priors_are_counted(quick_samples):
    config = get_preset("debug")
    block = count_block(config, 3000)
    assert block.packing == "tiers" and block.history == 3000
    assert block.history_tokens == 54
    decoder = count_decoder(config)
    # two frames are looked back upon; they are a view of the block's and keep its memory
    assert decoder.carried == 4 * (2 + config.block_latents) * config.vae.width * prod(config.latent_size)
    assert count_text(config.text) == Part(0)


def test_a_memorised_town_is_counted(town_config, quick_samples):
    """Its parameters, and a network on the tokens of a block, on top of the same model without one."""
    without = with_scene(town_config, places=None)
    found, rest = (costs._dit(config, 1) for config in (town_config, without))
    added = (
        sum(p.numel() for p in found.priors[0].places.parameters())
        + town_config.dit.latent_channels * town_config.dit.dim
    )
    assert count_parameters(town_config)[0] == count_parameters(without)[0] + added  # what it knows is one more input
    held = 1 + 2 + town_config.dit.history.packing.recent_frames
    flops = forward_cost(found, held).flops - forward_cost(rest, held).flops
    tokens = prod(town_config.token_grid)
    c, width = scene_of(town_config).places, scene_of(town_config).places.width
    features = (sum(features for *_, features in c.tables) + 5) * c.rays**2 + c.look
    channels = town_config.dit.latent_channels
    layers = features * width + width * width + 9 * width * width + width * channels + channels * town_config.dit.dim
    light = (2 * BANDS * channels + 1 + town_config.dit.text_dim) * 64 + 64 * c.look
    rows, columns = town_config.latent_size
    sight = 2 * 9 * 48 * (rows * columns * channels + ceil(rows / 2) * ceil(columns / 2) * 48)  # of two pictures
    rays = tokens * c.rays**2 * 3 * 3  # are turned
    sky = town_config.dit.text_dim * (LIGHTS + WEATHERS)
    assert flops == 2 * (tokens * layers + light + sight + 2 * 48 * c.look + sky + rays)


def test_pictures_are_resized_and_odd_ones_refused():
    assert resized(SMALL, None) is SMALL
    big = resized(SMALL, "128x96")
    assert (big.height, big.width) == (128, 96)
    with pytest.raises(ValueError, match="multiple of 16"):
        resized(SMALL, "70x96")
    for wrong in ("70", "0x96", "axb"):
        with pytest.raises(ValueError, match="height x width"):
            resized(SMALL, wrong)


def test_a_history_past_the_released_packing_is_refused_and_tiers_go_on(made, monkeypatch):
    def block(config: ModelConfig, history: int) -> Block:
        if config.dit.history.packing == "released":
            released_packing(history)
        kind = "tiers" if isinstance(config.dit.history.packing, Tiers) else "released"
        return replace(made.blocks[0], history=history, packing=kind, attention=config.dit.history.attention)

    stubs = {
        "count_block": block,
        "count_parameters": lambda config: (10_000, 2_000),
        "count_decoder": lambda config: made.decoder,
        "count_text": lambda config: made.text,
        "count_training": lambda config, history: made.training,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(command, name, stub)
    found = make_plan(SMALL, [5, 3000], baselines=["full-history"])
    tiers = [(3000, "tiers", "joint"), (3000, "tiers", "cached")]
    others = [(5, "full-history", "joint"), (3000, "full-history", "joint")]
    blocks = [(b.history, b.packing, b.attention) for b in found.blocks]
    assert blocks == [(5, "released", "joint"), (5, "released", "cached"), *tiers, *others]
    assert len(found.refused) == 2
    text = report(found, 0.4)
    assert text.count("released packing ends at 1366 history latents, got 3000") == 2
    assert "| any | tiers | cached |" in text
    assert text.count("| 5 | full-history | ") == 2  # in the table of costs, and in that of speeds


# ---- released sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("wan22_vae_diffusers.json", lambda: count_decoder(resized(get_preset("yume-5b"), "64x96"))),
        ("umt5_xxl_encoder_original.json", lambda: count_text(get_preset("yume-5b").text)),
    ],
)
def test_released_parts_have_their_parameters(file, part):
    if not (KEYS / file).is_file():
        pytest.skip("the lists of released tensors are not part of the repository (set YUME_FIXTURES)")
    listed = json.loads((KEYS / file).read_text())
    found = part()
    assert found.parameters == listed["parameters"]
    assert found.cost.flops > 0


# ---- what follows -----------------------------------------------------------------------------------------------------


@pytest.fixture
def made() -> Plan:
    """A plan of round numbers."""
    block = Block(5, "released", "joint", 100, 200, Cost(10, 40), Cost(20, 30), 4, Footprint(7, 3, 2))
    training = Training(Cost(300, 1000), Cost(80, 50))
    return Plan(SMALL, 10_000, 2_000, [block], [], Part(500, Cost(110, 60), 9), Part(7), training, 23)


def test_speed_and_memory_follow_from_the_counts(made):
    block, device = made.blocks[0], replace(DEVICES[0], flops=100.0)
    assert made.seconds(block, device, 0.5) == pytest.approx((10 + 4 * 20 + 110) / 50)
    assert made.frames_per_second(block, device, 0.5) == pytest.approx(32 / 4)
    assert block.peak == 2 + max(40, 7 + 3 + 30)
    assert made.memory(block) == 2 * 10_500 + 9 + max(block.peak, 2 + 7 + 3 + 60)


def test_what_is_sharded_halves_and_the_rest_stays(made):
    eight, sixteen = made.distillation(8), made.distillation(16)
    assert sum(eight[name] for name in ("generator", "fake score", "EMA", "real score")) == 38 * 10_000 // 8
    outside = 10_000 - 4 * 2_000
    for name, need in eight.items():
        if name == "gathered":
            assert need == sixteen[name] == 6 * outside + 8 * 2_000
        elif name == "activations":
            assert need == sixteen[name] == 1000
        else:
            assert sixteen[name] == need // 2
    flops = made.training_flops(made.blocks[0])
    assert flops == {"foundation": 300, "fake score": 10 + 2.5 * 20 + 300, "generator": 1.5 * 20 + 300 + 3 * 80 + 300}


def test_command_line(made, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(command, "make_plan", lambda *arguments, **options: asked.append(arguments) or made)
    monkeypatch.setattr("sys.argv", ["plan", "yume-5b", "--size", "544x960", "--history", "5", "9", "--gpus", "4"])
    command.main()
    config, histories = asked[0]
    assert (config.height, config.width, histories) == (544, 960, [5, 9])
    printed = capsys.readouterr().out
    assert "| 5 | released | joint | 100 |" in printed and "| 4 |" in printed
    monkeypatch.setattr("sys.argv", ["plan", "yume-5b", "--size", "545x960"])
    with pytest.raises(SystemExit):
        command.main()
    assert "multiple of 32" in capsys.readouterr().err


def test_units():
    assert [command._flop(n) for n in (0, 999, 999.6, 1.234e12, 2e18)] == ["0", "999", "1 K", "1.23 T", "2e+03 P"]
    assert [command._size(n) for n in (12, 2**30)] == ["12 B", "1 GiB"]
    assert isinstance(SMALL.dit.history.packing, str) and Tiers().recent_frames == 14
