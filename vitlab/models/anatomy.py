"""Where the tokens, blocks and feature maps of a model are: found by watching one forward pass, not
by a list of names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from vitlab.models.attention import AttentionCall, AttentionWatch
from vitlab.schema import Anatomy, Window

# images in the probe: two, so that a module which moves windows into the batch axis is recognised
BATCH = 2


@dataclass(frozen=True)
class _Step:
    """One submodule of the forward pass: its name, and the shapes of its first input and of its
    output. callers: names of the modules that were running when it was called; a shared module's
    own name does not tell. calls: how often it ran.
    """

    name: str
    transparent: bool  # a plain nn.Sequential: its parts count as parts of what holds it
    input: tuple[int, ...]
    output: tuple[int, ...]
    follows_attention: bool
    callers: tuple[str, ...]
    calls: int = 1

    def is_within(self, others) -> bool:
        return any(_is_inside(name, others) for name in (self.name, *self.callers))


@dataclass(frozen=True)
class _Attention:
    """What one module computed: `queries` tokens attend to `keys` tokens, in a batch of `batch`;
    times: how often in one forward pass.
    """

    batch: int
    queries: int
    keys: int
    window: Window | None
    times: int = 1


def find_anatomy(module: nn.Module, size: tuple[int, int]) -> Anatomy:
    """Send noise images of `size` (height, width) through the model and derive its structure; the
    model is left as it was.

    No names of parts are known. An attention module is one that runs while attention is computed,
    its block the nearest module around it that maps tokens to as many tokens, and windows show in
    the order in which tokens arrive.

    kind is "vit" (attention over patches), "hybrid" (attention over the feature map of a CNN),
    "windowed" (Swin), "cnn" (feature maps, no attention) or "other": attention over neither one
    sequence of all tokens nor windows of a map (PVT, LeViT), attention of which only a part can be
    followed (ConViT, CaiT), or no attention and no feature maps either (MLP-Mixer). For "other",
    blocks, attention and grid stay empty, and `reason` explains why.

    >>> from timm import create_model
    >>> anatomy = find_anatomy(create_model("vit_tiny_patch16_224", img_size=64), (64, 64))
    >>> anatomy.kind, anatomy.grid, anatomy.num_prefix_tokens, anatomy.attention[0]
    ('vit', (4, 4), 1, 'blocks.0.attn')
    """
    watch = _Watch()
    watch.run(module, size)
    steps = watch.steps
    # pooling is a kind of head
    found = {name: seen for name, seen in watch.attention.items() if seen.queries >= seen.keys}
    attention = tuple(found)
    blocks = tuple(_find_block(name, steps) for name in attention)
    inside = (*watch.attending, *blocks)
    maps = _find_maps(steps, size, inside)
    resolutions = {steps[name].output[2:]: name for name in maps}  # the last one of each
    stages = tuple(resolutions.values()) if len(resolutions) > 1 else ()
    if not watch.attending and stages:
        reason = "it has no attention"
        return Anatomy("cnn", (), (), 0, tuple(resolutions)[-1], stages, reason=reason)
    reason = _find_gap(watch)
    if reason:
        return Anatomy("other", (), (), 0, (0, 0), stages, reason=reason)
    before = [name for name in maps if not steps[name].follows_attention]
    grid = steps[before[-1]].output[2:] if before else (0, 0)
    num_tokens = _count_tokens([steps.get(name) for name in blocks], found.values())
    if 0 < grid[0] * grid[1] <= num_tokens:
        kind, num_prefix_tokens = "hybrid" if stages else "vit", num_tokens - grid[0] * grid[1]
        return Anatomy(kind, blocks, attention, num_prefix_tokens, grid, stages)
    windows = tuple(seen.window for seen in found.values())
    if windows and all(windows):
        stages = _find_windowed_stages(steps, windows, inside)
        reason = "its attention sees windows of the map, never all tokens"
        return Anatomy("windowed", blocks, (), 0, windows[-1].grid, stages, windows, reason)
    reason = (
        "its attention sees neither one sequence of all tokens from first to last nor windows of"
        " a map"
    )
    return Anatomy("other", (), (), 0, (0, 0), stages, reason=reason)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each part's own mode again."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def place_tokens(window: Window) -> torch.Tensor:
    """The token, numbered row by row, at each place of each window of a Swin (arXiv 2103.14030):
    (windows, T), -1 where a window reaches past the map. The map is rolled by the shift, padded at
    its lower right to whole windows, and cut.
    """
    rows, columns = window.grid
    height, width = window.size
    tokens = (
        torch.arange(rows * columns)
        .view(rows, columns)
        .roll((-window.shift[0], -window.shift[1]), (0, 1))
    )
    tokens = F.pad(tokens, (0, -columns % width, 0, -rows % height), value=-1)
    # (rows, columns, h, w) first
    return tokens.unfold(0, height, height).unfold(1, width, width).reshape(-1, height * width)


class _Watch(AttentionWatch):
    """Notes every submodule that maps a tensor to a tensor, and every module that computes
    attention itself.

    steps: in the order in which they finish, containers after their parts. attending: names of all
    modules in which T tokens weigh T others, also those that use the weights in another
    way."""

    def __init__(self):
        super().__init__()
        self.steps: dict[str, _Step] = {}
        self.attention: dict[str, _Attention] = {}
        self.attending: set[str] = set()
        # name, input, latest map before it
        self.running: list[tuple[str, torch.Tensor | None, torch.Tensor | None]] = []
        self.map: torch.Tensor | None = None

    def run(self, module, size) -> None:
        entry = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
        weight = next(module.parameters())
        images = torch.randn(
            BATCH,
            entry.in_channels if entry else 3,
            *size,
            generator=torch.Generator().manual_seed(0),
        )
        with ExitStack() as stack:
            for name, part in module.named_modules():
                stack.callback(part.register_forward_pre_hook(self._enter(name)).remove)
                stack.callback(part.register_forward_hook(self._leave(name)).remove)
            stack.enter_context(evaluating(module))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self)
            module(images.to(weight.device, weight.dtype))

    def attend(self, call: AttentionCall) -> torch.Tensor:
        name, tokens, source = self.running[-1]
        self.attending.add(name)
        batch, queries, keys = len(call.output), call.output.shape[-2], call.value.shape[-2]
        earlier = self.attention.get(name)
        if earlier:
            self.attention[name] = replace(earlier, times=earlier.times + 1)
            return call.output
        window = None
        if tokens is not None and source is not None:
            window = _find_window(name, tokens, source)
        self.attention[name] = _Attention(batch, queries, keys, window)
        return call.output

    def see_softmax(self, output: torch.Tensor, axis: int) -> None:
        square = axis == -1 and output.shape[-1] == output.shape[-2] > 1
        # over the axis before: keys (B, H, T, d) that are summed before any query
        if square or (axis == -2 and output.ndim == 4):
            self.attending.add(self.running[-1][0])

    def _enter(self, name):
        def enter(part, inputs):
            first = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
            self.running.append((name, first, self.map))
            self._keep_map(first)

        return enter

    def _leave(self, name):
        def leave(part, inputs, output):
            self.running.pop()
            first = inputs[0] if inputs else None
            if name and isinstance(first, torch.Tensor) and isinstance(output, torch.Tensor):
                # a module used twice is listed where it was used last
                before = self.steps.pop(name, None)
                self.steps[name] = _Step(
                    name,
                    transparent=isinstance(part, nn.Sequential),
                    input=tuple(first.shape),
                    output=tuple(output.shape),
                    follows_attention=bool(self.attending),
                    callers=tuple(caller for caller, *_ in self.running if caller),
                    calls=before.calls + 1 if before else 1,
                )
            self._keep_map(output)

        return leave

    def _keep_map(self, tensor) -> None:
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 4 and len(tensor) == BATCH:
            self.map = tensor


def _find_gap(watch: _Watch) -> str:
    """Why the attention cannot be followed, as a sentence without its full stop; empty where it
    can.
    """
    if not watch.attending:
        return "it has no attention and no feature maps"
    modules = {name for name in watch.attending if not _is_inside(name, watch.attending - {name})}
    lost = sorted(name for name in modules if not _is_inside(name, watch.attention))
    if lost:
        many = f"{len(lost)} of its {len(modules)} attention modules, {lost[0]} among them,"
        return f"{many} use the attention weights in a way that cannot be followed"
    for name, seen in watch.attention.items():
        if seen.times > 1:
            return f"its module {name} computes attention {seen.times} times in one forward pass"
    return ""


def _is_inside(name: str, others) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _find_block(name, steps) -> str:
    """The nearest module around attention that gives as many tokens as it takes; the attention
    module where there is none.
    """
    path = name.split(".")
    around = [steps.get(".".join(path[:length])) for length in range(len(path) - 1, 0, -1)]
    fitting = [
        step.name for step in around if step and not step.transparent and step.input == step.output
    ]
    return fitting[0] if fitting else name


def _count_tokens(blocks, attention) -> int:
    """T, where every block maps (B, T, C) to (B, T, C) and its attention sees all T; else 0."""
    lengths = {size for seen in attention for size in (seen.queries, seen.keys)}
    fit = all(
        step and step.input == step.output and len(step.output) == 3 and step.output[0] == BATCH
        for step in blocks
    )
    lengths |= {step.output[1] for step in blocks if step}
    whole = fit and len(lengths) == 1 and all(seen.batch == BATCH for seen in attention)
    return lengths.pop() if whole else 0


def _find_windowed_stages(steps, windows, inside) -> tuple[str, ...]:
    """The last module outside the blocks that gives a map (B, h, w, C), for each of the grids that
    windows are cut from.
    """
    grids = {window.grid for window in windows}
    last = {
        step.output[1:3]: name
        for name, step in steps.items()
        if len(step.output) == 4
        and step.output[0] == BATCH
        and step.output[1:3] in grids
        and not step.is_within(inside)
    }
    return tuple(last.values())


def _find_maps(steps, size, inside) -> list[str]:
    """Modules with a (B, C, h, w) output of the image's proportions, in order.

    Left out: what lies inside attention and transformer blocks, what runs several times (CoaT),
    maps of a single cell, and the inner parts of a block that changes the resolution (the expansion
    at the start of EfficientNet's next stage is still of the old one)."""
    height, width = size

    def is_map(shape):
        if len(shape) != 4 or shape[0] != BATCH:
            return False
        h, w = shape[2:]
        # both sides were rounded, up or down
        return abs(h * width - w * height) < max(height, width)

    changing = [
        step.name
        for step in steps.values()
        if is_map(step.input)
        and is_map(step.output)
        and step.input[2:] != step.output[2:]
        and not step.transparent
    ]

    def opens_next_stage(step):
        holders = (steps[name] for name in changing if step.name.startswith(f"{name}."))
        return any(holder.input[2:] == step.output[2:] for holder in holders)

    return [
        name
        for name, step in steps.items()
        if is_map(step.output)
        and step.calls == 1
        and step.output[2:] != (1, 1)
        and not step.is_within(inside)
        and not opens_next_stage(step)
    ]


def _find_window(layer: str, inside: torch.Tensor, outside: torch.Tensor) -> Window | None:
    """How a map of tokens (B, h, w, C) was cut into what an attention layer takes in, (B * windows,
    T, C); None where it was not. Tokens are recognised by their values.
    """
    if (
        inside.ndim != 3
        or outside.ndim != 4
        or inside.shape[-1] != outside.shape[-1]
        or len(inside) % len(outside)
    ):
        return None
    # a model without weights, built to be counted: its tokens have no values to be recognised by
    if inside.is_meta:
        return None
    batch, *grid, _ = outside.shape
    numbers = {
        token.tobytes(): number
        for number, token in enumerate(outside[0].flatten(0, 1).float().cpu().numpy())
    }
    seen = [
        numbers.get(token.tobytes(), -1)
        for token in inside[: len(inside) // batch].flatten(0, 1).float().cpu().numpy()
    ]
    area = inside.shape[1]
    shift = divmod(seen[0], grid[1])
    for height in range(1, area + 1):
        window = Window(layer, tuple(grid), (height, area // height), shift)
        if area % height == 0 and place_tokens(window).flatten().tolist() == seen:
            return window
    return None
