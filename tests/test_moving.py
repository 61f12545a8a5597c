"""Pictures looked up at displacements and blended: against a slow form; displacements that are no numbers; the likeliest alone."""

from __future__ import annotations

import math

import torch

from world_model.moving import blurred, likeliest, move


def looked_up(picture: torch.Tensor, row: float, column: float) -> torch.Tensor:
    """The colour [3] of a picture [3, H, W] at a place, bilinear; beside the picture there are its mirror images."""
    height, width = picture.shape[-2:]
    while not -0.5 <= column <= width - 0.5:
        column = -1 - column if column < 0 else 2 * width - 1 - column
    while not -0.5 <= row <= height - 0.5:
        row = -1 - row if row < 0 else 2 * height - 1 - row
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    top, left = min(math.floor(row), height - 2), min(math.floor(column), width - 2)
    a, b = row - top, column - left
    p = picture[:, top : top + 2, left : left + 2]
    return (1 - a) * ((1 - b) * p[:, 0, 0] + b * p[:, 0, 1]) + a * ((1 - b) * p[:, 1, 0] + b * p[:, 1, 1])


def test_moving_is_bilinear_look_up_in_every_source_and_blending():
    """Against one pixel after another, with displacements that leave the picture."""
    torch.manual_seed(0)
    pictures, flow = torch.rand(2, 3, 3, 8, 12), 4 * torch.randn(2, 2, 3, 3, 8, 12)
    moved = move(pictures, flow, 1)
    for world, frame, y, x in ((0, 0, 0, 0), (0, 1, 3, 7), (1, 0, 7, 11), (1, 1, 4, 0), (1, 1, 2, 9)):
        right, down, logit = flow[world, frame, :, :, y, x].T.tolist()
        shares = torch.tensor(logit).softmax(0)
        expected = sum(
            s * looked_up(p, y + dy, x + dx) for s, p, dy, dx in zip(shares, pictures[world], down, right, strict=True)
        )
        torch.testing.assert_close(moved[world, frame, :, y, x], expected, rtol=0, atol=1e-4)


def test_displacements_that_are_no_number_harm_nothing_else():
    """Their gradient would be written anywhere in memory."""
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 3, 8, 12, requires_grad=True)
    for value in (math.nan, math.inf, -math.inf, 1e30):
        flow = torch.zeros(2, 2, 3, 3, 8, 12)
        flow[0, :, :, :2] = value
        flow.requires_grad_()
        moved = move(pictures, flow, 1)
        moved.square().sum().backward()
        assert moved.isfinite().all() and flow.grad.isfinite().all()
        torch.testing.assert_close(moved[1], pictures[1].mean(dim=0).expand(2, -1, -1, -1))


def test_what_does_not_move_is_left_as_it_is():
    pictures = torch.rand(2, 1, 3, 8, 12)
    torch.testing.assert_close(move(pictures, torch.zeros(2, 1, 1, 3, 4, 6), 1, "bicubic"), pictures, rtol=0, atol=1e-5)


def test_of_two_sources_nearly_the_likelier_one_alone_is_taken():
    flow = torch.zeros(1, 1, 2, 3, 4, 6)
    flow[:, :, 0, 2] = 1.5
    assert flow[0, 0, :, 2, 0, 0].softmax(0)[0] < 0.82 < 0.98 < likeliest(flow)[0, 0, :, 2, 0, 0].softmax(0)[0]
    torch.testing.assert_close(likeliest(flow)[:, :, :, :2], flow[:, :, :, :2])


def test_blurring_is_the_mean_of_a_square_and_of_what_is_at_the_border():
    torch.manual_seed(0)
    pictures = torch.rand(1, 2, 3, 6, 9)
    for width in (1, 3, 17):
        with torch.inference_mode():
            made = blurred(pictures, width)
        for y, x in ((0, 0), (2, 4), (5, 8)):
            rows, columns = (
                [min(max(at + d, 0), size - 1) for d in range(-(width // 2), width // 2 + 1)]
                for at, size in ((y, 6), (x, 9))
            )
            expected = pictures[..., rows, :][..., columns].mean(dim=(-2, -1))
            torch.testing.assert_close(made[..., y, x], expected)
        blurred(pictures.requires_grad_(), width).sum().backward()  # what inference has kept can be learnt through
