"""How history enters the network: TSCM's two halves (Yume1.5, section 3.2), patchified and summed up.

Shapes: B worlds, C latent channels, F history frames, D width, h x w latent size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from world_model.blocks import Block, Grid
from world_model.config import ModelConfig
from world_model.layers import axis_frequencies, linear_sums, rotary_table
from world_model.packing import build_packing
from world_model.positions import Positions
from world_model.tscm import ChannelMemory, History


class HistoryEmbedding(nn.Module):
    """The patch kernels of a block and of its history, and where in time and space tokens are. The subclass sets `blocks` and
    `recent_embedding`."""

    blocks: nn.ModuleList
    recent_embedding: nn.Module | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        c, dim, channel = config.dit, config.dit.dim, config.dit.history.channel
        self.patch_embedding = nn.Conv3d(c.latent_channels, dim, c.patch, c.patch)
        self.packing = build_packing(config)
        # a block's tokens may span several frames, those of its history span one
        self.kernel_ratios = self.packing.ratios if c.patch[0] == 1 else (1, *self.packing.ratios)
        for ratio in self.kernel_ratios:
            kernel = (1, c.patch[1] * ratio, c.patch[2] * ratio)
            self.add_module(f"patch_embedding_{ratio}x", nn.Conv3d(c.latent_channels, dim, kernel, kernel))
        if self.packing.two_stage:
            shrink = (1, 2 * c.patch[1], 2 * c.patch[2])
            self.patch_embedding_2x_f = nn.Conv3d(c.latent_channels, c.latent_channels, shrink, shrink)
        _, rows, columns = config.token_grid
        self.channel_embedding = (
            nn.Conv3d(c.latent_channels, channel.dim, channel.patch, channel.patch) if channel else None
        )
        self.screen = nn.Parameter(torch.zeros(1, dim, rows, columns)) if c.embedding.screen else None
        self.empty = nn.Parameter(torch.zeros(dim)) if self.packing.constant else None
        self.positions = Positions(config)
        self.frequencies = axis_frequencies(c.head_dim, c.embedding.positions)
        self.channel_frequencies = (
            axis_frequencies(channel.dim // channel.heads, c.embedding.positions) if channel else []
        )

    @property
    def layers(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]

    @torch.no_grad()
    def interpolate_coarse_kernels(self) -> None:
        """Sets the coarse kernels to the finest one, spread over more places."""
        fine = self.patch_embedding.weight.sum(dim=2, keepdim=True)
        for ratio in self.kernel_ratios:
            coarse = self.get_submodule(f"patch_embedding_{ratio}x")
            weight = coarse.get_parameter("weight")
            size = tuple(weight.shape[-2:])
            spread = F.interpolate(fine.flatten(0, 2)[None], size=size, mode="nearest")[0].view_as(weight)
            weight.copy_(spread / ratio**2)
            coarse.get_parameter("bias").copy_(self.patch_embedding.get_parameter("bias"))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights; latents come in any and are embedded in this one."""
        return self.patch_embedding.weight.dtype

    def pack(self, history: History, start: Tensor) -> tuple[Tensor, Tensor, list[Grid]]:
        """Patchified history [B, n, D], its coordinates [B, n, 3] and the token grid of each group; block start frame [B]."""
        tokens, coordinates, grids, frames_so_far = [], [], [], 0
        for group in self.packing.groups(history.frames):
            latents = history.latents[:, :, group.start : group.stop].to(self.dtype)
            if group.two_stage:
                latents = _padded(self.patch_embedding_2x_f, latents)
            coarse = group.ratio in self.kernel_ratios
            kernel = self.get_submodule(f"patch_embedding_{group.ratio}x") if coarse else self.patch_embedding
            embedded = _padded(kernel, latents) if coarse else kernel(latents)
            if self.screen is not None:
                embedded = embedded + F.avg_pool2d(self.screen, group.ratio, ceil_mode=True)[:, :, None]
            if self.empty is not None:
                present = history.present[:, None, group.start : group.stop, None, None]
                embedded = torch.where(present, embedded, self.empty[None, :, None, None, None])
            grid: Grid = tuple(embedded.shape[2:])
            tokens.append(embedded.flatten(2).transpose(1, 2))
            part = slice(group.start, group.stop)
            relative = history.frame[:, part] - start[:, None]
            coordinates.append(
                self.positions.tokens(
                    relative, history.yaw[:, part], history.pitch[:, part], grid, group.ratio, frames_so_far
                )
            )
            grids.append(grid)
            frames_so_far += grid[0]
        if self._kernels_vary:
            tokens[0] = tokens[0] + self._no_kernel()
        return torch.cat(tokens, 1), torch.cat(coordinates, 1), grids

    @property
    def _kernels_vary(self) -> bool:
        """Whether a length of history uses some patch kernels only, and gradients are wanted of all."""
        return not self.packing.constant and torch.is_grad_enabled()

    def _no_kernel(self) -> Tensor:
        """Zero that depends on all patch kernels: all need a gradient at every step, and that of what is read, or sharded processes
        fall out of step."""
        kernels = [p for name, p in self.named_parameters() if name.startswith("patch_embedding")]
        return 0 * torch.stack([p.sum() for p in kernels]).sum()

    def _recent(self, history: History | None, bias: Tensor | None) -> Tensor | None:
        """`bias` [B, L, D] plus the newest history frames, embedded place by place (channel concatenation)."""
        if self.recent_embedding is None or history is None:
            return bias
        newest = history.latents[:, :, -self.config.dit.history.recent_frames :].to(self.dtype)
        seen = history.has_past[:, None, None, None].to(self.dtype)
        stacked = torch.cat([rearrange(newest, "B C n h w -> B (n C) h w") * seen, seen.expand_as(newest[:, :1, 0])], 1)
        embedded = self.recent_embedding(stacked)
        tokens = rearrange(embedded, "B (F D) h w -> B (F h w) D", F=self.config.token_grid[0])
        return tokens if bias is None else bias + tokens

    def _latent_rows(self, history: History | None) -> tuple[int, int]:
        rows, columns = self.config.latent_size if history is None else history.latents.shape[-2:]
        return rows // self.config.dit.patch[1], columns // self.config.dit.patch[2]

    # ---- channel half -------------------------------------------------------------------------------------------------

    def empty_memory(self, context: Tensor) -> ChannelMemory:
        """The channel memory of worlds without a past, as many as `context` has rows."""
        c = self.config.dit.history.channel
        assert c is not None
        shape = (len(self.blocks), context.shape[0], c.heads, c.dim // c.heads)
        zeros = torch.zeros(shape, device=context.device)
        return ChannelMemory(zeros[..., None].expand(*shape, shape[-1]), zeros)

    def encode_memory(self, block: History) -> ChannelMemory | None:
        """Channel sums of whole kernels of history, oldest decayed most; frames are front-padded to whole kernels.

        Because z_linear enters every layer unchanged, sums of two stretches add up: memory of (a, b) is
        ``encode_memory(a).add(encode_memory(b), decay ** kernels of b)``.
        """
        c = self.config.dit.history.channel
        if c is None or self.channel_embedding is None:
            return None
        depth = c.patch[0]
        missing = -block.frames % depth
        latents = F.pad(block.latents.to(self.dtype), (0, 0, 0, 0, missing, 0))
        z = _padded(self.channel_embedding, latents)
        grid: Grid = (z.shape[2], z.shape[3], z.shape[4])
        pad = (missing, 0)
        frame, yaw, pitch = (
            F.pad(v[:, None].double(), pad, mode="replicate")[:, 0] for v in (block.frame, block.yaw, block.pitch)
        )
        last = slice(depth - 1, None, depth)
        table = rotary_table(
            self.positions.kernels(frame[:, last], yaw[:, last], pitch[:, last], grid, c.patch),
            self.channel_frequencies,
        )
        age = torch.arange(grid[0] - 1, -1, -1, device=z.device)
        weight = (c.decay ** age.float())[None] * F.pad(block.present.float(), (missing, 0), value=1.0)[:, last]
        weight = repeat(weight, "B F -> B (F n)", n=grid[1] * grid[2])
        z = z.flatten(2).transpose(1, 2)
        count = z.shape[1]
        z = F.pad(z, (0, 0, 0, -count % 8))  # products of whole eights of rows round alike on any number of threads
        channels = [layer.channel for layer in self.layers if layer.channel is not None]
        pairs = [channel.keys_values(z) for channel in channels]
        sums = [linear_sums(k[:, :, :count], v[:, :, :count], table, weight) for k, v in pairs]
        return ChannelMemory(torch.stack([s for s, _ in sums]), torch.stack([n for _, n in sums]))


def _padded(layer: nn.Module, latents: Tensor) -> Tensor:
    """Zero padding at the bottom and right to whole kernels, then the convolution."""
    rows, columns = layer.kernel_size[-2:]  # type: ignore[index]
    return layer(F.pad(latents, (0, -latents.shape[-1] % columns, 0, -latents.shape[-2] % rows)))
