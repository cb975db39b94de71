"""The image reader of all datasets, tools and projects: what a viewer shows, in RGB, or an error."""

import base64
import binascii
import hashlib
import importlib.util
import io
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import IO, Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image, ImageColor

from .text import one_line, quoted, shown

# The formats that Pillow may open. (MPO, several JPEGs in one file, counts as JPEG.) Its other plugins start programs
# (EPS: Ghostscript), need Windows (WMF), or are stubs.
FORMATS: tuple[str, ...] = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000')
if importlib.util.find_spec('PIL.AvifImagePlugin') is not None:  # Since Pillow 11.3.
    FORMATS += ('AVIF',)
# 300 MB in RGB. Photographs have 12 to 60 million pixels.
MAX_PIXELS = 100_000_000
SHOWN_LENGTH = 200
# Resampling makes floating point numbers overshoot their range; this fraction of it is clipped.
SLACK = 0.05

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What a file is that Pillow cannot open, by its first bytes.
_OTHERS = {
    rb'%!PS|\xc5\xd0\xd3\xc6': 'PostScript',
    rb'%PDF': 'a PDF',
    rb'(?i)\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg': 'SVG, which is not a raster image',
    rb'(?i)\s*<(!doctype html|html|head|body)': 'a web page, such as a failed download leaves',
    rb'version https://git-lfs': 'a pointer of Git LFS instead of the file (git lfs pull fetches it)',
    rb'....ftyp(heic|heix|heim|heis|mif1|msf1)': 'HEIC, which Pillow does not read; convert it to JPEG',
    rb'....ftyp(avif|avis)': 'damaged, or of a kind unknown to Pillow',
    rb'....ftyp|\x1a\x45\xdf\xa3': 'a video',
    rb'\x89HDF': 'HDF5',
    rb'\x93NUMPY': 'a NumPy array',
    rb'PK\x03\x04': 'a zip archive',
    rb'\x1f\x8b': 'gzip',
    rb'SIMPLE  =': 'FITS',
    rb'\xff\xd8|\x89PNG|II[*+]\0|MM\0[*+]|GIF8|RIFF|BM|P[0-7fFy]\s': 'damaged, or of a kind unknown to Pillow',
}


class _ImageError(ValueError):
    """An error whose message already names the image."""


class MissingImageError(_ImageError):
    """The file does not exist."""


def read_image(
    source,
    *,
    root: str | os.PathLike = '',
    background: str | Sequence[int] = 'white',
    max_pixels: float | None = MAX_PIXELS,
) -> Image.Image:
    """Read an image as a viewer shows it.

    The EXIF orientation is applied. Values of more than 8 bits are scaled by their depth, so that 65535 in a 16-bit PNG
    is white. The range of floating point values, and of signed or 32-bit integers in a TIFF, is the smallest one that
    holds them all, out of [0, 1] (not for integers), [0, 255], [0, 65535] and the range of the integer type. If no
    range holds them, or they fill only the darkest eighth of it, the image is refused. Transparent pixels show the
    background. Of an animation or a file of several pages, the first one is read. Colour profiles are not applied.

    Only :data:`FORMATS` are opened, whatever the name of the file is. The number of pixels is checked before any pixel
    is decoded.

    Args:
        source (str | os.PathLike | bytes | Mapping | PIL.Image.Image): The path of a file or a ``file://`` URL, a
            ``data:`` URL, the content of a file, a mapping with ``bytes`` or else ``path`` as Hugging Face's datasets
            write it, or an image that Pillow has opened already.
        root (str | os.PathLike): The folder of relative paths. Defaults to ''.
        background (str | Sequence[int]): The colour under transparent pixels: a name that Pillow knows ('white',
        '#ff8000')
            or red, green and blue in [0, 255]. Defaults to ``'white'``.
        max_pixels (float, optional): Larger images are refused. Defaults to 100 million; with None only the limit of
            Pillow holds, ``PIL.Image.MAX_IMAGE_PIXELS``, which always does.

    Returns:
        PIL.Image.Image: In mode RGB.

    Raises:
        MissingImageError: If the file does not exist; it is a ValueError too.
        ValueError: If the image cannot be decoded or is too large, or an option is out of its range. The message has
            one line, names the file, and never holds its content.
    """
    colour, limit = check_image_options(background, max_pixels)
    name = _named(source)
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source.copy(), colour)
        content = _find(source, root)
        if isinstance(content, str):
            name = _named(content)
        with open(content, 'rb') if isinstance(content, str) else io.BytesIO(content) as file:
            return _decode(file, colour, limit)
    except _ImageError:
        raise
    # On damaged data Pillow raises struct.error, zlib.error, SyntaxError, MemoryError and others.
    except Exception as error:
        raise ValueError(f'image {name} cannot be read: {one_line(error, 2 * SHOWN_LENGTH)}') from error


def check_image_options(
    background: str | Sequence[int] = 'white', max_pixels: float | None = MAX_PIXELS
) -> tuple[tuple[int, int, int], float]:
    """Check the options of :func:`read_image`: the background as red, green and blue, and the limit as a number.

    Raises:
        ValueError: If one is out of its range; the message names it.
    """
    try:
        colour = ImageColor.getrgb(background) if isinstance(background, str) else tuple(background)
        known = len(colour) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"background={background!r} must be a colour without transparency, such as 'white' or '#ff8000', or red, "
            'green and blue as whole numbers from 0 to 255'
        )
    number = isinstance(max_pixels, (int, float)) and not isinstance(max_pixels, bool)
    if max_pixels is not None and not (number and max_pixels >= 1):
        raise ValueError(f'max_pixels={max_pixels!r} must be a number of at least 1, or None for no limit')
    red, green, blue = colour
    return (red, green, blue), math.inf if max_pixels is None else max_pixels


def image_name(source) -> str:
    """The name of an image in the metadata of a record: its path, or the length and a checksum of its content."""
    if isinstance(source, Mapping):
        path, content = source.get('path'), source.get('bytes')
        return image_name(path) if isinstance(path, (str, os.PathLike)) and path else image_name(content)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f'<{len(source)} bytes, {_checksum(source)}>'
    if isinstance(source, Image.Image):
        return f'<{type(source).__name__} of {source.width} x {source.height}>'
    if not isinstance(source, (str, os.PathLike)):
        return f'<{type(source).__name__}>'
    text = os.fsdecode(source)
    if not _is_data_url(text):
        return text
    text = text.lstrip()
    head = shown(text[:64].partition(',')[0])
    return f'{head},... ({len(text)} characters, {_checksum(text.encode(errors="surrogatepass"))})'


def _checksum(content: bytes | bytearray | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def _named(source) -> str:
    """The name of an image in a message: printable, not too long, and never its content."""
    name = image_name(source)
    if _is_base64(name) or (';base64,' in name and not _is_data_url(name)):
        return f'<{len(name)} characters>'
    return shown(name, SHOWN_LENGTH)


def _find(source: Any, root: str | os.PathLike) -> str | bytes | bytearray | memoryview:
    """The path of the file of an image, or the content of the file."""
    if isinstance(source, Mapping):
        content, path = source.get('bytes'), source.get('path')
        if content is not None and not isinstance(content, (bytes, bytearray, memoryview)):
            raise ValueError(f"its 'bytes' must hold the content of a file, found {type(content).__name__}")
        source = path if content is None else content
        if source is None:
            raise _ImageError("an image given by a mapping must have 'bytes' or 'path'")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return source
    if not isinstance(source, (str, os.PathLike)):
        # Only its beginning is quoted: a list may hold the content of a file.
        raise _ImageError(
            f'an image must be given by the path of its file, found {quoted(source, 20)}; a data: URL or '
            '{"bytes": ..., "path": ...} is allowed as well'
        )
    text = os.fsdecode(source)
    return _read_data_url(text) if _is_data_url(text) else _find_file(text, os.fspath(root))


def _find_file(text: str, root: str) -> str:
    """The file that a path or a ``file://`` URL names."""
    if not text:
        raise _ImageError("an image must be given by the path of its file, found ''")
    scheme = re.match(r'([a-z][a-z0-9+.-]+)://|(file):(?=/)', text, re.IGNORECASE)
    if scheme is not None and (scheme[1] or scheme[2]).lower() != 'file':
        raise _ImageError(f'image {_named(text)} is a web address; download it and give the path of the file')
    names = [text]
    if scheme is not None:
        text = re.sub('^localhost/', '/', text[scheme.end() :])
        names = [text, unquote(text)]
    # Paths in data that were written on Windows.
    names += [name.replace('\\', '/') for name in names if '\\' in name]
    paths = [os.path.join(root, name) for name in names]
    found = next((path for path in paths if os.path.isfile(path)), None)
    if found is not None:
        return found
    name = _named(text if _is_base64(text) else paths[0])
    if not os.path.exists(paths[0]):
        hint = '; base64 needs "data:image/png;base64," before it' if _is_base64(text) else ''
        raise MissingImageError(f'image {name} does not exist{hint}')
    raise _ImageError(f'image {name} is a {"folder" if os.path.isdir(paths[0]) else "device"}, not a file')


def _is_base64(text: str) -> bool:
    """Whether a text is the base64 content of a file rather than its name, which would have a dot."""
    known = text.startswith(('/9j/', 'iVBORw0KGgo', 'R0lGOD', 'UklGR', 'Qk'))
    return len(text) >= (32 if known else 100) and re.fullmatch(r'[\w+/\s-]+=*\s*', text, re.ASCII) is not None


def _is_data_url(text: str) -> bool:
    return text[:64].lstrip()[:5].lower() == 'data:'


def _read_data_url(text: str) -> bytes:
    """The content of ``data:[type][;base64],...`` (RFC 2397)."""
    head, comma, payload = text.lstrip()[5:].partition(',')
    if not comma:
        raise ValueError("a data: URL must hold a comma: 'data:image/png;base64,...'")
    content = unquote_to_bytes(payload)
    if not head.lower().replace(' ', '').endswith(';base64'):
        return content
    # RFC 4648 has a second alphabet, for URLs and file names.
    content = b''.join(content.split()).translate(bytes.maketrans(b'-_', b'+/'))
    content += b'=' * (-len(content) % 4)
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ValueError(f'the base64 of its data: URL is damaged ({error})') from error


def _decode(file: IO[bytes], background: tuple[int, int, int], max_pixels: float) -> Image.Image:
    start = file.read(1024)
    if not start:
        raise ValueError('it is empty (0 bytes)')
    file.seek(0)
    # Pillow warns about large images, which are checked here, and about metadata, which is not used.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            raise ValueError(f'it is {_kind(start)}; known formats are {", ".join(FORMATS)}') from error
        except Image.DecompressionBombError as error:
            raise ValueError(f'it is too large for Pillow (PIL.Image.MAX_IMAGE_PIXELS): {error}') from error
        with image:
            if not image.width or not image.height:
                raise ValueError(f'it has {image.width} x {image.height} pixels')
            if image.width * image.height > max_pixels:
                raise ValueError(f'it has {image.width} x {image.height} pixels, more than max_pixels={max_pixels:.0f}')
            _refuse_misread(image, file)
            return _to_rgb(image, background)


def _refuse_misread(image: Any, file: IO[bytes]) -> None:
    """Refuse files that Pillow decodes to something else than they hold."""
    if image.format in ('JPEG', 'MPO') and _ends_in_zeros(file):
        raise ValueError('its end is missing, there are zeros instead, as a download that broke off leaves them')
    # Pillow takes 16-bit channels of a TIFF that are stored one after another (284: PlanarConfiguration) for bytes.
    planar = image.format == 'TIFF' and image.tag_v2.get(284) == 2 and len(image.tile) > 1
    if planar and image.tile[0][0] == 'raw' and max(image.tag_v2.get(258, (1,))) > 8:
        raise ValueError('its channels of 16 bits are stored one after another, which Pillow reads wrongly')


def _ends_in_zeros(file: IO[bytes]) -> bool:
    """Whether a JPEG has zeros in place of its end: decoders would show grey there."""
    place = file.tell()
    file.seek(-min(64, file.seek(0, io.SEEK_END)), io.SEEK_END)
    found = not file.read().strip(b'\0')
    if found:
        file.seek(0)
        content = file.read().rstrip(b'\0')
        # An end mark before the last start of data is that of the preview in the metadata.
        found = content.rfind(b'\xff\xd9') < content.rfind(b'\xff\xda')
    file.seek(place)
    return found


def _kind(start: bytes) -> str:
    """What a file is that Pillow cannot open, by its first bytes."""
    for pattern, kind in _OTHERS.items():
        if re.match(pattern, start, re.DOTALL):
            return kind
    if not start.strip(b'\0'):
        return 'not an image, its first bytes are all 0'
    try:
        text = start[:-4].decode() if len(start) == 1024 else start.decode()
    except UnicodeDecodeError:
        return 'not an image that can be decoded'
    return 'text, not an image' if text.isprintable() or text.split() else 'not an image that can be decoded'


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image in RGB, turned upright."""
    rawmode = _rawmode(image)
    image.load()
    # After `load`: Pillow turns a TIFF itself while it decodes, and then removes the tag.
    turn = _TURNS.get(_orientation(image) or 0)
    opaque = _opaque(image, rawmode, background)
    if turn is not None:
        opaque = opaque.transpose(turn)
    elif opaque is image:
        opaque = image.copy()
    opaque.info = {}
    return opaque


def _orientation(image: Image.Image) -> int | None:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if isinstance(found, int) else None
    except Exception:  # Damaged metadata; the pixels may be fine.
        return None


def _rawmode(image: Image.Image) -> str:
    """How the pixels are stored, which Pillow knows only before it decodes them; '' if it does not tell."""
    for tile in getattr(image, 'tile', None) or ():
        arguments = tile[3]
        arguments = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        if isinstance(arguments, str):
            return arguments
    return ''


def _opaque(image: Image.Image, rawmode: str, background: tuple[int, int, int]) -> Image.Image:
    key = image.info.get('transparency')
    if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
        values = np.asarray(image)
        pixels = _to_8_bits(image, values)
        pixels = np.stack([pixels] * 3, axis=-1)
        if isinstance(key, int):
            pixels[values == key] = background
        return Image.fromarray(pixels)
    if image.mode in ('1', 'L', 'RGB') and isinstance(key, (int, tuple)):
        return _without_key(image, key, rawmode, background)
    if image.has_transparency_data:
        # Pillow converts La, grey that is premultiplied with alpha, only to LA.
        image = (image.convert('LA') if image.mode == 'La' else image).convert('RGBA')
        under = Image.new('RGBA', image.size, (*background, 255))
        return Image.alpha_composite(under, image).convert('RGB')
    if image.mode == 'LAB':
        from PIL import ImageCms

        profiles = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
        converted = ImageCms.profileToProfile(image, *profiles, outputMode='RGB')
        assert converted is not None  # Only with inPlace.
        return converted
    return image if image.mode == 'RGB' else image.convert('RGB')


def _without_key(
    image: Image.Image, key: int | tuple[int, ...], rawmode: str, background: tuple[int, int, int]
) -> Image.Image:
    """Replace one colour by the background. A PNG gives the colour at its own depth, where Pillow has 8 bits."""
    keys = np.atleast_1d(key).astype(np.int64)
    if rawmode == '1':
        keys = 255 * (keys > 0)
    elif '16' in rawmode:
        keys = keys >> 8
    else:
        keys = keys * {'L;2': 85, 'L;4': 17}.get(rawmode, 1)
    del image.info['transparency']
    pixels = np.array(image.convert('RGB'))
    pixels[(pixels == keys).all(-1)] = background
    return Image.fromarray(pixels)


def _to_8_bits(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Scale numbers of more than 8 bits.

    Args:
        image (PIL.Image.Image): Of mode I, F or I;16...
        values (np.ndarray): [H, W], its pixels.

    Returns:
        np.ndarray: [H, W] uint8.
    """
    tags = getattr(image, 'tag_v2', {})
    bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
    inverted = tags.get(262) == 0
    slack = 0.0
    limits: tuple[int, ...]
    if image.mode == 'F':
        if not np.isfinite(values).all():
            raise ValueError('its floating point numbers hold NaN or infinity')
        limits, slack = (1, 255, 65535), SLACK
    elif image.mode != 'I':
        limits = (2**bits - 1,)
    elif image.format not in ('TIFF', None):
        limits = (65535,)
    else:
        if bits == 32 and not signed:
            values = values.view(np.uint32)
        limits = (255, *([65535] if bits > 16 else []), 2 ** (bits - signed) - 1)
    low, high = values.min().item(), values.max().item()
    for limit in limits:
        # In a larger range the image would be almost black: it is more likely that its range is another one.
        if -slack * limit <= low and high <= (1 + slack) * limit and (limit == limits[0] or high >= limit / 8):
            pixels = np.rint(values.astype(np.float32) * (255 / limit)).clip(0, 255).astype(np.uint8)
            return 255 - pixels if inverted else pixels
    raise ValueError(
        f'its numbers go from {low:g} to {high:g}, and nothing says which one is white; save it with 8 or 16 bits'
    )
