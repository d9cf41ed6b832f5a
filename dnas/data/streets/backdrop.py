"""Rendering the background of a street per pixel: sky, skyline, ground, houses, fences and vegetation.

The depth at which each image column's ray hits the frontage is known, and so is the depth of the ground in each row
below the horizon. Textures are therefore functions of positions in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from dnas.data.streets.camera import FAR, Camera, Kind
from dnas.data.streets.layout import RGB, Floats, Light, Street
from dnas.data.streets.rays import Columns, follow_rays

_TILE = 64
_PAINT = (214.0, 214.0, 206.0)


@dataclass(frozen=True)
class Backdrop:
    """image: float32 (H, W, 3) in 0..255. mask: uint8 (H, W). depth: of the frontage in each column (W,)."""

    image: Floats
    mask: npt.NDArray[np.uint8]
    depth: Floats


@dataclass(frozen=True)
class _Surfaces:
    """The rendering so far: image (H, W, 3), mask (H, W), and the depth of each pixel (H, W), 0 for the sky."""

    image: Floats
    mask: npt.NDArray[np.uint8]
    depth: Floats


def render_backdrop(
    street: Street, light: Light, camera: Camera, size: tuple[int, int], shadows: Floats, rng: np.random.Generator
) -> Backdrop:
    """Render the street without objects; ``shadows`` (H, W) is the brightness of its ground under their shadows."""
    height, width = size
    rows = np.arange(height, dtype=np.float32) + 0.5
    slope = (np.arange(width, dtype=np.float32) + 0.5 - camera.centre) / camera.focal
    tile = _noise_tile(rng)
    image, mask = _sky(light, camera, size, rng)
    _skyline(image, mask, light, camera, rng)
    columns = follow_rays(street, light, camera, slope)
    seen = _Surfaces(image, mask, np.zeros(size, np.float32))
    _ground(seen, street, light, camera, slope, rows, shadows, tile)
    _walls(seen, columns, camera, rows, tile)
    _vegetation(seen, columns, camera, rows, tile)
    fog = 1 - np.exp(-light.fog * seen.depth)
    return Backdrop(_mix(image, light.haze, fog[..., None]), mask, columns.line)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> Floats:
    """Smooth noise (H, W) of mean 0 and about unit deviation, interpolated from a grid of ``cells`` random values."""
    coarse = rng.normal(0, 1, cells).astype(np.float32)
    picture = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32)


def _noise_tile(rng: np.random.Generator) -> Floats:
    """(64, 64) noise with fine and medium grain, the texture of all surfaces, indexed by positions in metres."""
    fine = rng.normal(0, 1, (_TILE, _TILE)).astype(np.float32)
    return 0.6 * fine + 0.8 * smooth_noise(rng, (_TILE, _TILE), (12, 12))


def _grain(tile: Floats, across: Floats, along: Floats) -> Floats:
    grain: Floats = tile[across.astype(np.int32) % _TILE, along.astype(np.int32) % _TILE]
    return grain


def _mix(image: Floats, colour: Floats | RGB, share: Floats | float) -> Floats:
    """Blend ``image`` with ``share`` (0 to 1) of ``colour``."""
    mixed: Floats = (np.asarray(colour, np.float32) - image) * share
    mixed += image
    return mixed


def _sky(
    light: Light, camera: Camera, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Floats, npt.NDArray[np.uint8]]:
    height, width = size
    rows = min(height, max(1, int(camera.horizon) + 1))
    rise = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None]
    sky = _mix(np.asarray(light.haze, np.float32), light.zenith, rise)
    clouds = smooth_noise(rng, (rows, width), (3, 6)) + 0.6 * smooth_noise(rng, (rows, width), (6, 14))
    cover = np.clip(0.4 * clouds + (0.8 * light.clouds - 0.4), 0, 0.8).astype(np.float32)[..., None]
    image = np.empty((height, width, 3), np.float32)
    image[:rows] = _mix(np.broadcast_to(sky, (rows, width, 3)), (232.0, 234.0, 238.0), cover)
    image[rows:] = light.haze
    return image, np.full(size, Kind.SKY, np.uint8)


def _skyline(
    image: Floats, mask: npt.NDArray[np.uint8], light: Light, camera: Camera, rng: np.random.Generator
) -> None:
    """Distant houses and trees along the horizon, of random widths and heights, faded by the haze."""
    width = image.shape[1]
    edges = np.cumsum(rng.uniform(0.015, 0.07, 60)) * width
    block = np.minimum(np.searchsorted(edges, np.arange(width)), 59)
    tree = rng.random(60) < 0.55
    tops = np.where(tree, rng.uniform(5, 13, 60), rng.uniform(6, 24, 60)).astype(np.float32)
    bumps = np.where(tree[block], 1.5 * smooth_noise(rng, (1, width), (1, 40))[0], 0)
    top_rows = camera.horizon - camera.focal * (tops[block] + bumps) / (1.15 * FAR)
    colours = np.where(tree[:, None], (66.0, 84.0, 54.0), (136.0, 126.0, 118.0)) * rng.uniform(0.7, 1.2, (60, 1))
    faint = _mix(colours.astype(np.float32), light.haze, max(0.35, light.faded(FAR)))
    first, last = max(0, int(top_rows.min())), min(image.shape[0], int(camera.horizon) + 2)
    inside = np.arange(first, max(first, last))[:, None] >= top_rows
    image[first:last][inside] = np.broadcast_to(faint[block], (*inside.shape, 3))[inside]
    kinds = np.where(tree, Kind.TREE, Kind.BUILDING).astype(np.uint8)
    mask[first:last][inside] = np.broadcast_to(kinds[block], inside.shape)[inside]


def _ground(
    seen: _Surfaces,
    street: Street,
    light: Light,
    camera: Camera,
    slope: Floats,
    rows: Floats,
    shadows: Floats,
    tile: Floats,
) -> None:
    top = min(len(rows), max(0, int(np.ceil(camera.horizon))))
    depth = (camera.focal * camera.eye / (rows[top:] - camera.horizon))[:, None]
    if not len(depth):
        return
    depth = np.minimum(depth, 20 * FAR)
    lateral = slope[None] * depth - camera.bend * depth**2
    road = (lateral > street.kerb_left) & (lateral < street.kerb_right)
    shade = np.where(road, np.float32(1), _paving(street, lateral, depth, camera))
    grain = _grain(tile, lateral * 9, np.broadcast_to(depth * 4, lateral.shape))
    stains = _grain(tile, lateral * 1.3, np.broadcast_to(depth * 0.35, lateral.shape))
    shade = shade * (1 + (0.035 * grain + 0.05 * stains) * np.clip(25 / depth, 0.2, 1))
    shade = shade * _cast_shadows(street, light, lateral, depth) * shadows[top:]
    surface = np.array(
        [street.paving, street.asphalt, _mix(np.array(street.asphalt, np.float32), _PAINT, 0.75)], np.float32
    )
    seen.image[top:] = surface[road.astype(np.int64) + _markings(street, lateral, depth, road)]
    seen.image[top:] *= shade[..., None]
    seen.mask[top:] = np.where(road, np.uint8(Kind.ROAD), np.uint8(Kind.PAVEMENT))
    seen.depth[top:] = depth


def _paving(street: Street, lateral: Floats, depth: Floats, camera: Camera) -> Floats:
    """Brightness of the pavement: light kerbstones, and joints between the slabs if they are close enough."""
    beyond = np.maximum(street.kerb_left - lateral, lateral - street.kerb_right)
    visible = np.clip(camera.focal / depth / 40, 0, 1)
    joints = ((beyond / 0.8) % 1 < 0.07) | ((depth / 0.8) % 1 < 0.07)
    shade: Floats = np.where(beyond < 0.18, np.float32(1.22), 1 - 0.13 * visible * joints)
    return shade


def _markings(street: Street, lateral: Floats, depth: Floats, road: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Mask of the road markings: a dashed centre line, edge lines, a crossing."""
    paint = np.zeros(lateral.shape, bool)
    if street.markings:
        paint |= (np.abs(lateral - street.middle) < 0.09) & (depth % 7 < 3.5)
        paint |= np.abs(np.minimum(lateral - street.kerb_left, street.kerb_right - lateral) - 0.35) < 0.06
    if street.crossing is not None:
        paint |= (np.abs(depth - street.crossing) < 1.6) & (lateral % 1.1 < 0.55)
    return paint & road


def _cast_shadows(street: Street, light: Light, lateral: Floats, depth: Floats) -> Floats:
    """Brightness of the ground under the shadows of the frontage on the side of the sun."""
    if light.sun == 0:
        return np.ones_like(lateral)
    side = street.left if light.sun < 0 else street.right
    height = side.height[np.minimum(np.searchsorted(side.ends, depth[:, 0]), len(side.ends) - 1)]
    reach = light.reach * height[:, None]
    from_front = lateral - street.front_left if light.sun < 0 else street.front_right - lateral
    return np.where(from_front < reach, np.float32(0.56), np.float32(1.04))


def _walls(seen: _Surfaces, columns: Columns, camera: Camera, rows: Floats, tile: Floats) -> None:
    hit = np.flatnonzero(columns.wall < FAR)
    if not len(hit):
        return
    depth, along = columns.wall[hit], columns.along[hit]
    elevation = camera.eye + (camera.horizon - rows)[:, None] * depth / camera.focal
    inside = (elevation >= 0) & (elevation < columns.top[hit])
    bay, storey = columns.bay[hit], columns.storey[hit]
    # Windows smaller than a few pixels blend into the wall, as in a photo.
    sharp = np.clip(camera.focal * bay / depth / 7, 0, 1)
    across, up = (along / bay) % 1, (elevation / storey) % 1
    window = (np.abs(across - 0.5) < 0.24) & (np.abs(up - 0.55) < 0.27) & (elevation < columns.top[hit] - 0.7)
    shop = elevation < 0.9 * storey
    window = np.where(shop, (np.abs(across - 0.5) < 0.38) & (elevation > 0.5), window)
    glass = (0.85 * sharp * window + 0.2 * (1 - sharp))[..., None]
    bricks = _grain(tile, np.broadcast_to(along * 9, elevation.shape), elevation * 11)
    tone = columns.shade[hit] * (1 + 0.045 * bricks) * np.where(elevation > columns.top[hit] - 0.45, 0.72, 1)
    wall = _mix(columns.colour[hit][None] * tone[..., None], columns.pane[hit], glass)
    _paint(seen, hit, depth, inside, wall, Kind.BUILDING)


def _vegetation(seen: _Surfaces, columns: Columns, camera: Camera, rows: Floats, tile: Floats) -> None:
    hit = np.flatnonzero(columns.open)
    if not len(hit):
        return
    depth = columns.line[hit]
    elevation = camera.eye + (camera.horizon - rows)[:, None] * depth / camera.focal
    above = elevation >= 0
    along = np.broadcast_to(depth, elevation.shape)
    leaves = _grain(tile, along * 9, elevation * 7)
    top = columns.green_top[hit] + 0.12 * leaves
    shade = np.clip(0.55 + 0.45 * elevation / columns.green_top[hit] + 0.17 * leaves, 0.3, 1.5)
    _paint(seen, hit, depth, above & (elevation < top), columns.green[hit] * shade[..., None], Kind.TREE)
    fence = columns.fence[hit]
    if not fence.any():
        return
    sharp = np.clip(camera.focal * 0.5 / depth / 4, 0, 1)
    slats = 1 - 0.28 * sharp * ((along / 0.5) % 1 < 0.3) - 0.15 * (elevation > fence - 0.15)
    boards = columns.fence_colour[hit] * (slats * (1 + 0.03 * leaves))[..., None]
    _paint(seen, hit, depth, above & (elevation < fence), boards, Kind.FENCE)


def _paint(
    seen: _Surfaces,
    columns: npt.NDArray[np.int64],
    depth: Floats,
    inside: npt.NDArray[np.bool_],
    colours: Floats,
    kind: Kind,
) -> None:
    """Write ``colours`` (H, K, 3) and ``depth`` (K,) into the K ``columns`` where ``inside`` (H, K) is true."""
    rows, positions = np.nonzero(inside)
    across = columns[positions]
    seen.image[rows, across] = colours[rows, positions]
    seen.mask[rows, across] = kind
    seen.depth[rows, across] = depth[positions]
