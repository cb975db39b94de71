"""What a viewer shows of every kind of image file, and one line for those that cannot be read."""

import base64
import io
import os
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, ImageFile

from mergemix_mm.utils.images import FORMATS, MissingImageError, image_name, read_image

WHITE, BLACK, RED = [255] * 3, [0] * 3, [255, 0, 0]
needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split('.')[0]) < 13, reason='Pillow 12, the newest for Python 3.10, does not read it'
)


@pytest.fixture(autouse=True)
def _no_warning_escapes():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def stored(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source, **options):
    """The pixels of an image of one row."""
    image = read_image(source, **options)
    assert image.mode == 'RGB' and image.height == 1
    return np.asarray(image)[0].tolist()


def greys(source, **options):
    found = np.array(pixels(source, **options))
    assert (found == found[:, :1]).all()
    return found[:, 0].tolist()


def png(depth, colour, row, extra=b'', width=None):
    """A PNG of one row, written by hand."""

    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    width = width or len(row) * 8 // (depth * channels)
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, 1, depth, colour, 0, 0, 0))
    parts = [header, chunk(b'tRNS', extra) if extra else b'', chunk(b'IDAT', zlib.compress(b'\0' + row))]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts) + chunk(b'IEND', b'')


def shorts(*values):
    return struct.pack(f'>{len(values)}H', *values)


def tiff(values, order='<', photometric=1, bits=None, extra=None, packed=None, planar=1):
    """A TIFF of one strip, written by hand: [H, W] or [H, W, samples] of any type of numbers."""
    values = np.asarray(values)
    height, width, samples = (*values.shape, 1)[:3]
    content = packed or values.astype(values.dtype.newbyteorder(order)).tobytes()
    sample_format = dict(u=1, i=2, f=3)[values.dtype.kind]
    bits = bits or values.dtype.itemsize * 8
    entries = {256: [width], 257: [height], 258: [bits] * samples, 259: [1], 262: [photometric], 273: [0]}
    entries |= {277: [samples], 278: [height], 279: [len(content)], 339: [sample_format] * samples}
    entries |= {} if extra is None else {338: [extra]}
    if planar == 2:  # A strip for each channel.
        size = len(content) // samples
        entries |= {273: [0] * samples, 279: [size] * samples, 284: [2]}
    behind = 8 + 2 + 12 * len(entries) + 4
    blobs = b''
    long = {tag: struct.pack(f'{order}{len(v)}H', *v) for tag, v in entries.items() if len(v) > 2}
    start = behind + sum(map(len, long.values()))
    entries[273] = [start + i * len(content) // len(entries[273]) for i in range(len(entries[273]))]
    long |= {273: struct.pack(f'{order}{samples}H', *entries[273])} if planar == 2 else {}
    rows = []
    for tag, numbers in sorted(entries.items()):
        raw = struct.pack(f'{order}{len(numbers)}H', *numbers).ljust(4, b'\0')
        if tag in long:
            raw, blobs = struct.pack(f'{order}I', behind + len(blobs)), blobs + long[tag]
        rows.append(struct.pack(f'{order}HHI', tag, 3, len(numbers)) + raw)
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}IH', 8, len(entries))
    return head + b''.join(rows) + b'\0' * 4 + blobs + content


@pytest.mark.parametrize(
    'content, expected',
    [
        (png(16, 0, shorts(0, 257, 32768, 65535)), [0, 1, 128, 255]),
        (png(16, 4, shorts(0, 0, 0, 65535)), [255, 0]),  # With alpha, over white.
        (tiff(np.array([[0, 2**31, 2**32 - 1]], np.uint32)), [0, 128, 255]),
        (tiff(np.array([[0, 4095]], np.uint16), bits=12, packed=b'\x00\x0f\xff'), [0, 255]),
        (tiff(np.array([[0, 65535]], np.uint16), photometric=0), [255, 0]),
        (tiff(np.array([[0, 1]], np.float32), '>', photometric=0), [255, 0]),
        (tiff(np.array([[[0, 0], [0, 255]]], np.uint8), extra=2), [255, 0]),
        pytest.param(tiff(np.array([[[0, 0], [0, 255]]], np.uint8), extra=1), [255, 0], marks=needs_pillow_13),
        # A second channel that is not said to be alpha.
        pytest.param(tiff(np.array([[[7, 0], [9, 255]]], np.uint8), extra=0), [7, 9], marks=needs_pillow_13),
        (b'P5\n2 1\n65535\n\0\0\xff\xff', [0, 255]),
        (b'P5\n2 1\n4095\n\0\0\x0f\xff', [0, 255]),
        (b'P2\n2 1\n1023\n0 1023\n', [0, 255]),
        (b'Pf\n2 1\n-1.0\n' + np.array([0, 0.5], '<f4').tobytes(), [0, 128]),
        (stored(Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)), 'JPEG2000'), [0, 128, 255]),
    ],
)
def test_deep_greys_are_scaled_by_their_depth(content, expected):
    assert greys(content) == expected


def test_deep_colours_are_scaled_by_their_depth():
    assert pixels(png(16, 2, shorts(0, 32768, 65535))) == [[0, 128, 255]]
    assert pixels(png(16, 6, shorts(0, 0, 0, 0, 65535, 0, 0, 65535))) == [WHITE, RED]
    deep = np.array([[[0, 32768, 65535]]], np.uint16)
    assert pixels(tiff(deep, photometric=2)) == [[0, 128, 255]]
    # Planes of 16 bits without compression: Pillow would take each byte for a pixel.
    with pytest.raises(ValueError, match='16 bits'):
        read_image(tiff(deep, photometric=2, planar=2))


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize(
    'values, expected',
    [
        (np.array([[0, 257, 32768, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 0.25, 0.5, 1]], np.float32), [0, 64, 128, 255]),
        (np.array([[0, 0.25, 64, 255]], np.float32), [0, 0, 64, 255]),
        (np.array([[0, 256, 32768, 65535]], np.float32), [0, 1, 128, 255]),
        (np.array([[-0.04, 0, 0.5, 1.04]], np.float32), [0, 0, 128, 255]),
        (np.array([[0, 0.01, 0.02]], np.float32), [0, 3, 5]),
        (np.array([[-9, 0, 51, 260]], np.float32), [0, 0, 51, 255]),
        (np.array([[0, 16384, 32767]], np.int16), [0, 128, 255]),
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
    ],
)
def test_numbers_of_a_tiff_are_scaled_by_the_range_that_holds_them(order, values, expected):
    assert greys(tiff(values, order)) == expected


@pytest.mark.parametrize(
    'values, found',
    [
        (np.array([[0, 70000]], np.float32), 'from 0 to 70000'),
        (np.array([[-1, 0.5]], np.float32), 'from -1 to 0.5'),
        (np.array([[0, 2]], np.float32), 'from 0 to 2,'),
        (np.array([[0, 1023]], np.float32), 'from 0 to 1023'),
        (np.array([[0, 4095]], np.int32), 'from 0 to 4095'),
        (np.array([[0, 4000]], np.int16), 'from 0 to 4000'),
        (np.array([[0, -7]], np.int32), 'from -7 to 0'),
        (np.array([[0, 70000]], np.int32), 'from 0 to 70000'),
        (np.array([[0, np.nan]], np.float32), 'NaN or infinity'),
        (np.array([[0, np.inf]], np.float32), 'NaN or infinity'),
        (np.array([[0, 0.5]], np.float64), 'damaged, or of a kind unknown to Pillow'),
    ],
)
def test_numbers_without_a_known_white_are_refused(values, found):
    with pytest.raises(ValueError, match=found):
        read_image(tiff(values))


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'PA', 'RGBa', 'La'])
def test_what_is_transparent_shows_the_background(mode):
    drawing = Image.new('LA', (2, 1), (0, 0))
    drawing.putpixel((1, 0), (0, 255))
    image = drawing if mode in ('LA', 'La') else drawing.convert('RGBA')
    image = image.convert('P').convert('PA') if mode == 'PA' else image.convert(mode)
    assert pixels(image) == [WHITE, BLACK]
    assert pixels(image, background='#ff0000') == [RED, BLACK]


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF', 'AVIF', 'JPEG2000'])
def test_dark_drawings_on_nothing_lie_on_white(kind):
    image = Image.new('RGBA', (16, 1), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 1))
    found = np.array(pixels(stored(image, kind, **(dict(lossless=True) if kind == 'WEBP' else {}))))
    assert (found[:8] > 250).all() and (found[8:] < 5).all()


def test_alpha_of_a_half_is_mixed():
    assert pixels(stored(Image.new('RGBA', (1, 1), (0, 0, 0, 128)))) == [[127] * 3]
    assert pixels(stored(Image.new('RGBA', (1, 1), (0, 0, 0, 128))), background=(0, 0, 0)) == [BLACK]


@pytest.mark.parametrize(
    'content, expected',
    [
        (png(1, 0, b'\x70', shorts(0), width=2), [RED, WHITE]),
        (png(1, 0, b'\x70', shorts(1), width=2), [BLACK, RED]),
        (png(2, 0, b'\x1b', shorts(1)), [BLACK, RED, [170] * 3, WHITE]),
        (png(4, 0, b'\x1f', shorts(1)), [RED, WHITE]),
        (png(8, 0, b'\x00\x10', shorts(0)), [RED, [16] * 3]),
        (png(16, 0, shorts(0, 5140), shorts(0)), [RED, [20] * 3]),
        (png(8, 2, b'\0\x10\x20\0\0\0', shorts(0, 16, 32)), [RED, BLACK]),
        (png(16, 2, shorts(0, 32768, 65535, 0, 0, 0), shorts(0, 32768, 65535)), [RED, BLACK]),
    ],
)
def test_the_transparent_colour_of_a_png_counts_at_its_own_depth(content, expected):
    assert pixels(content, background='red') == expected


def test_palettes_with_transparency():
    image = Image.new('P', (3, 1))
    image.putpalette([0, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert pixels(stored(image)) == [BLACK, [0, 255, 0], [0, 0, 255]]
    assert pixels(stored(image, transparency=0)) == [WHITE, [0, 255, 0], [0, 0, 255]]
    assert pixels(stored(image, transparency=b'\xff\x00\x80')) == [BLACK, WHITE, [127, 127, 255]]
    assert pixels(stored(image, 'GIF', transparency=2)) == [BLACK, [0, 255, 0], WHITE]


def test_other_colour_spaces():
    red = Image.new('RGB', (8, 1), 'red')
    near = np.array([RED] * 8)
    assert np.abs(np.array(pixels(stored(Image.new('CMYK', (8, 1), (0, 255, 255, 0)), 'JPEG'))) - near).max() <= 2
    spaces = ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB')
    lab = ImageCms.profileToProfile(red, *spaces, outputMode='LAB')
    assert np.abs(np.array(pixels(stored(lab, 'TIFF'))) - near).max() <= 6  # 8 bits of L, a and b.
    assert pixels(Image.new('HSV', (1, 1), (0, 255, 255))) == [RED]
    assert pixels(stored(Image.new('1', (1, 1), 1))) == [WHITE]


@needs_pillow_13
def test_a_tiff_of_brightness_and_colour():
    tiff = stored(Image.new('RGB', (8, 1), 'red').convert('YCbCr'), 'TIFF')
    assert np.abs(np.array(pixels(tiff)) - np.array([RED] * 8)).max() <= 2


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF', 'MPO'])
def test_all_orientations_are_applied(kind):
    quarters = np.array([[255, 170], [85, 0]], dtype=np.uint8).repeat(16, 0).repeat(24, 1)
    turned = [None, quarters, quarters[:, ::-1], quarters[::-1, ::-1], quarters[::-1], quarters.T]
    turned += [np.rot90(quarters, -1), quarters[::-1, ::-1].T, np.rot90(quarters)]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = np.asarray(read_image(stored(Image.fromarray(quarters).convert('RGB'), kind, exif=exif)))[..., 1]
        assert found.shape == turned[orientation].shape
        assert np.abs(found.astype(int) - turned[orientation]).max() <= 16, orientation


@pytest.mark.parametrize('orientation', [0, 9, 65535, None])
def test_an_orientation_that_does_not_exist_or_is_damaged_turns_nothing(orientation):
    exif = b'Exif\0\0garbage of no use' if orientation is None else Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    assert read_image(stored(Image.new('RGB', (3, 2)), 'JPEG', exif=exif)).size == (3, 2)


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP', 'TIFF', 'AVIF', 'MPO'])
def test_the_first_frame_page_or_picture_is_read(kind):
    frames = [Image.new('RGB', (16, 16), colour) for colour in ('red', 'lime', 'blue')]
    found = read_image(stored(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert np.abs(np.asarray(found).astype(int) - RED).max() <= 4


def noise(*size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'MPO'])
def test_a_file_that_was_cut_off_is_an_error_of_one_line(kind, tmp_path):
    path = tmp_path / 'cut.img'
    content = stored(noise(64, 48), kind)
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=r'^image .*/cut\.img cannot be read: .+') as caught:
            read_image(path)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kind', ['JPEG', 'MPO'])
def test_a_jpeg_that_ends_in_zeros_is_refused_instead_of_shown_half_grey(kind):
    preview = Image.Exif()
    preview[0x927C] = stored(noise(8, 8), 'JPEG')
    content = stored(noise(64, 48), kind, exif=preview)
    with pytest.raises(ValueError, match='its end is missing, there are zeros instead'):
        read_image(content[: len(content) // 2].ljust(len(content), b'\0'))
    assert np.array_equal(read_image(content + b'\0' * 100), read_image(content))


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match='0 x 1 pixels|damaged'):
        read_image(tiff(np.zeros((1, 0), np.uint8)))


def test_the_number_of_pixels_is_limited_before_they_are_decoded(tmp_path):
    large = Image.new('1', (50, 40))
    assert read_image(stored(large), max_pixels=2000).size == (50, 40)
    with pytest.raises(ValueError, match='50 x 40 pixels, more than max_pixels=1999'):
        read_image(stored(large), max_pixels=1999)
    # With a wrong checksum too, a decoder that began to work would say something else.
    header = struct.pack('>IIBBBBB', 20000, 10000, 1, 0, 0, 0, 0)
    content = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + b'IHDR' + header
    content += struct.pack('>I', zlib.crc32(b'IHDR' + header)) + struct.pack('>I', 4) + b'IDAT' + b'junk' + b'\0' * 4
    for options in (dict(), dict(max_pixels=None)):
        with pytest.raises(ValueError, match=r'20000 x 10000 pixels, more than max_pixels=100000000|MAX_IMAGE_PIXELS'):
            read_image(content, **options)


def test_the_state_of_pillow_for_others_stays():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        read_image(stored(Image.new('1', (10000, 9000))), max_pixels=90_000_000)  # Pillow warns from 89,478,485 on.
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) and not caught


def test_postscript_under_another_name_starts_nothing(tmp_path, monkeypatch):
    def start(*args, **kwargs):
        raise AssertionError(f'started {args}')

    for name in ('check_call', 'call', 'run', 'Popen', 'check_output'):
        monkeypatch.setattr(subprocess, name, start)
    path = tmp_path / 'photo.jpg'
    for content in (stored(Image.new('RGB', (4, 4)), 'EPS'), b'\xc5\xd0\xd3\xc6' + b'\0' * 30):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'photo\.jpg cannot be read: it is PostScript; known formats are JPEG'):
            read_image(path)


@pytest.mark.parametrize('kind', ['PDF', 'ICO', 'TGA', 'XBM'])
def test_formats_that_were_not_asked_for_are_not_opened(kind):
    image = Image.new('1' if kind == 'XBM' else 'RGB', (16, 16))
    with pytest.raises(ValueError, match='known formats are ' + ', '.join(FORMATS)):
        read_image(stored(image, kind))


@pytest.mark.parametrize(
    'content, found',
    [
        (b'', r'it is empty \(0 bytes\)'),
        (b'\0' * 4096, 'first bytes are all 0'),
        (b'just words\n', 'it is text, not an image'),
        (b'<!DOCTYPE html><html>404</html>', 'it is a web page'),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', 'it is SVG'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n', 'it is a pointer of Git LFS'),
        (b'%PDF-1.7\n', 'it is a PDF'),
        (b'\0\0\0\x18ftypheic\0\0\0\0', 'it is HEIC'),
        (b'\0\0\0\x18ftypisom\0\0\0\0', 'it is a video'),
        (b'\x89HDF\r\n\x1a\n' + b'\0' * 90, 'it is HDF5'),
        (b'PK\x03\x04....', 'it is a zip archive'),
        (b'\x1f\x8b\x08\0....', 'it is gzip'),
        (b'SIMPLE  =                    T', 'it is FITS'),
        (bytes(range(256)), 'it is not an image that can be decoded'),
        (b'\x89PNG\r\n\x1a\n', 'damaged'),
        (b'II*\0', 'damaged'),
    ],
)
def test_a_file_of_something_else_is_called_by_its_name(tmp_path, content, found):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf'^image {path} cannot be read: .*{found}'):
        read_image(path)


def url(content, head='data:image/png;base64,'):
    return head + base64.b64encode(content).decode()


def test_the_forms_in_which_images_are_given(tmp_path):
    content = stored(Image.new('RGB', (1, 1), 'red'))
    path = tmp_path / 'a b.png'
    path.write_bytes(content)
    escaped = (
        url(content).replace('+', '%2B').replace('/', '%2F').replace('=', '%3D').replace('image%2Fpng', 'image/png')
    )
    sources = [path, str(path), f'file://{path}', f'file://localhost{path}', f'file://{tmp_path}/a%20b.png']
    sources += [content, bytearray(content), memoryview(content)]
    sources += [url(content), url(content, 'DATA:;base64,'), url(content).rstrip('='), escaped]
    sources += [url(content)[:40] + '\n' + url(content)[40:], url(content, 'data:image/jpeg;name=a.jpg;base64,')]
    sources += [dict(bytes=content, path=None), dict(bytes=content, path='gone.png'), dict(path=str(path), bytes=None)]
    sources += [dict(path=path), Image.open(path)]
    # Base64 for URLs and file names, white space in front, a URL with one slash.
    png = stored(Image.new('RGB', (1, 1), 'red'), 'BMP') + b'\xfb\xff' * 3
    assert '+' in url(png) and '/' in url(png)[30:]
    sources += [url(png)[:22] + url(png)[22:].replace('+', '-').replace('/', '_'), f' \n{url(png)}', f'file:{path}']
    for source in sources:
        assert pixels(source) == [RED], source
    assert pixels('a b.png', root=tmp_path) == pixels(dict(path='a b.png'), root=tmp_path) == [RED]


def test_folders_may_be_separated_as_on_windows(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'a.png').write_bytes(stored(Image.new('RGB', (1, 1), 'red')))
    assert pixels('train\\a.png', root=tmp_path) == pixels('.\\train\\a.png', root=tmp_path) == [RED]
    # Where a file has this very name, it is the one that is meant.
    (tmp_path / 'train\\a.png').write_bytes(stored(Image.new('RGB', (1, 1), 'blue')))
    assert pixels('train\\a.png', root=tmp_path) == [[0, 0, 255]]
    with pytest.raises(ValueError, match=r'train\\b\.png does not exist'):
        read_image('train\\b.png', root=tmp_path)


@pytest.mark.parametrize(
    'source, found',
    [
        ('none.png', r'^image /data/none\.png does not exist$'),
        ('', "^an image must be given by the path of its file, found ''$"),
        ('a\0b', r'^image /data/a\\x00b does not exist'),
        ('a\udc80.png', r'^image /data/a\\udc80\.png does not exist'),
        ('\x1b[31mred.png', r'^image /data/\\x1b\[31mred\.png does not exist'),
        ('x' * 5000 + '.png', r'^image /data/x+\.\.\.x+\.png does not exist'),
        ('https://x.org/a.png', '^image https://x.org/a.png is a web address; download it'),
        ('s3://bucket/a.png', '^image s3://bucket/a.png is a web address'),
        (5, '^an image must be given by the path of its file, found 5'),
        (None, 'found None'),
        (['a.png'], r"found \['a\.png'\]"),
        (dict(path=None, bytes=None), "must have 'bytes' or 'path'"),
        (dict(url='a.png'), "must have 'bytes' or 'path'"),
        (dict(bytes='aGk=', path='p.png'), r"^image p\.png cannot be read: its 'bytes' must .* found str$"),
        ('data:image/png;base64', 'must hold a comma'),
        ('data:image/png;base64,', r'it is empty \(0 bytes\)'),
        ('data:image/png;base64,!!!!', r'^image data:image/png;base64,\.\.\. \(26 characters, .* data: URL is damaged'),
        ('data:text/plain,hello', 'it is text, not an image'),
        (url(b'<svg/>', 'data:image/svg+xml;base64,'), 'it is SVG'),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(source, found):
    with pytest.raises(ValueError, match=found) as caught:
        read_image(source, root='/data')
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_messages_and_names_never_hold_the_content():
    payload = base64.b64encode(np.random.default_rng(0).bytes(6000)).decode()
    url = f'data:image/png;base64,{payload}'
    for source in (url, f'\n{url}', f'"{url}"', payload, dict(bytes=payload), dict(path=payload), [payload]):
        with pytest.raises(ValueError) as caught:
            read_image(source)
        assert payload[:16] not in str(caught.value)


def test_names_tell_images_apart_without_their_content():
    assert image_name('a' * 500) == 'a' * 500 and image_name(Path('a.png')) == 'a.png'
    assert image_name(dict(bytes=b'123', path='a.png')) == 'a.png'
    assert image_name(b'123') == image_name(dict(bytes=b'123', path=None))
    assert image_name(b'123').startswith('<3 bytes, ') and image_name(b'124') != image_name(b'123')
    urls = [url(stored(Image.new('RGB', (1, 1), colour), 'BMP')) for colour in ('red', 'blue')]
    names = [image_name(each) for each in urls]
    assert len(urls[0]) == len(urls[1]) and names[0] != names[1]
    assert all(name.startswith(f'data:image/png;base64,... ({len(urls[0])} characters, ') for name in names)


def test_folders_devices_and_forbidden_files(tmp_path):
    with pytest.raises(ValueError, match=f'^image {tmp_path} is a folder, not a file'):
        read_image(tmp_path)
    pipe = tmp_path / 'pipe.png'
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match='pipe.png is a device, not a file'):
        read_image(pipe)
    with pytest.raises(MissingImageError, match='does not exist'):
        read_image(tmp_path / 'none.png')


def test_a_file_without_permission_is_an_error_of_its_own(tmp_path, monkeypatch):
    path = tmp_path / 'mine.png'
    path.write_bytes(b'x')

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr('builtins.open', refuse)
    with pytest.raises(ValueError, match=r'mine\.png cannot be read: .*Permission denied'):
        read_image(path)


@pytest.mark.parametrize('error', [struct.error('x'), MemoryError(), EOFError()])
def test_whatever_a_decoder_raises_is_an_error_of_one_line(monkeypatch, error):
    def load(self):
        raise error

    content = stored(Image.new('RGB', (4, 4)))
    monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
    with pytest.raises(ValueError, match=f'cannot be read: {error or type(error).__name__}'):
        read_image(content)


@pytest.mark.parametrize(
    'options, found',
    [
        (dict(background='no colour'), "background='no colour'"),
        (dict(background='#ff000080'), "background='#ff000080'"),
        (dict(background=(1, 2)), r'background=\(1, 2\)'),
        (dict(background=(0, 0, 256)), r'background=\(0, 0, 256\)'),
        (dict(background=None), 'background=None'),
        (dict(max_pixels=0), 'max_pixels=0'),
        (dict(max_pixels=float('nan')), 'max_pixels=nan'),
        (dict(max_pixels=True), 'max_pixels=True'),
    ],
)
def test_options_out_of_range_are_named(options, found):
    with pytest.raises(ValueError, match=found):
        read_image(stored(Image.new('RGB', (1, 1))), **options)


def test_what_is_read_is_an_image_of_its_own(tmp_path):
    path = tmp_path / 'a.png'
    noise(4, 4).save(path)
    image = read_image(path)
    path.unlink()
    assert type(image) is Image.Image and image.info == {}
    given = Image.open(io.BytesIO(png(8, 0, b'\x00\x10', shorts(0))))
    read_image(given)
    assert given.info['transparency'] == 0
