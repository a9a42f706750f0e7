"""Moving pictures: folders of pictures, animated pictures, and videos, which an ffmpeg whose end is checked reads and writes."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, compress
from pathlib import Path
from typing import Any, Literal

import imageio_ffmpeg
import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion.data.images import DataError, data_errors, decoded, is_image_name, natural_key, open_image, read_image, with_channels
from diffusion.data.products import data_among, kind_of_file, left_out, mark
from diffusion.files import whole_file
from lbm_warp.checks import InputError, amount

# What ffmpeg reads: videos. Other formats would open further files or addresses, or take any text for a video.
CONTAINERS = "mov,matroska,avi,flv,asf,ogg,mpeg,mpegvideo,mpegts,h264,hevc,obu,ivf,nut,mxf,dv,yuv4mpegpipe"
# Decoders that see transparency in WebM; those that ffmpeg takes by itself do not.
SEES_TRANSPARENCY = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
OVER_WHITE = "its transparent parts are shown over white"
# Pillow's formats whose pictures are frames; in others, such as TIFF, they are pages.
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF", "FLI")
NO_DELAY = 100  # how long a frame lasts whose file does not say so, as in browsers [ms]


@dataclass(frozen=True)
class Pictures:
    """Pictures to be read one after the other.

    Attributes:
        count: how many, at least 1.
        fps: how many a second; where they last unequally long, so many that the duration stays. None for a folder.
        read: makes an iterator of them, float32 [3, H, W] in [0, 1].
        remarks: what a person should know of them.
    """

    count: int
    fps: Fraction | None
    read: Callable[[], Iterator[np.ndarray]]
    remarks: tuple[str, ...] = ()


def is_film(path: Path) -> bool:
    """Whether a path is a folder, an animated picture, or a file that is no picture at all: a video, if it can be read."""
    if path.is_dir():
        return True
    try:
        return _is_animation(path)
    except DataError as error:
        return isinstance(error.__cause__, UnidentifiedImageError)


def open_film(path: Path) -> Pictures:
    """The pictures of a folder, of an animated picture or of a video.

    Raises:
        InputError: if there are none, or they cannot be read.
    """
    if path.is_dir():
        files, remarks = pictures_in(path)
        return Pictures(len(files), None, lambda: (read_image(file, "RGB") for file in files), remarks)
    try:
        animated = _is_animation(path)
    except DataError:
        animated = False
    return _animation(path) if animated else _video(path)


def pictures_in(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The pictures of a folder, frame2 before frame10, without what this project made; frames of its films if there are no others.

    Returns:
        The files, and a remark of what is left out.

    Raises:
        InputError: if there are none.
    """
    files = sorted((file for file in folder.iterdir() if is_image_name(file.name)), key=lambda file: natural_key(file.name))
    kinds = [kind_of_file(file) for file in files]
    data = data_among(kinds)
    others = [kind for kind, is_data in zip(kinds, data, strict=True) if kind and not is_data]
    if not any(data):
        why = left_out(others) if others else "expected names that end in .png, .jpg or as others that Pillow reads"
        raise InputError(f"{folder}: no pictures in this folder: {why}")
    return list(compress(files, data)), (left_out(others),) * bool(others)


def read_still(path: Path, mode: Literal["L", "RGB"] | None = None) -> np.ndarray:
    """As :func:`read_image`, with a line of what is left out: all but the first picture of a file."""
    image = read_image(path, mode)
    with open(path, "rb") as file:
        remark_on_others(open_image(file, str(path)), path)
    return image


def remark_on_others(image: Image.Image, path: Path) -> None:
    """Say it if all but the first picture of a file are left out."""
    if (count := getattr(image, "n_frames", 1)) > 1:
        print(f"{path}: only the first of its {count} pictures is used")


def _is_animation(path: Path) -> bool:
    with data_errors(str(path)), open(path, "rb") as file:
        image = open_image(file, str(path))
        return image.format in ANIMATIONS and getattr(image, "n_frames", 1) > 1


def _animation(path: Path) -> Pictures:
    name = str(path)

    def frames() -> Iterator[Image.Image]:
        with data_errors(name), open(path, "rb") as file:
            image: Any = open_image(file, name)
            # A picture for viewers that know no animations is not one of the frames.
            for number in range(getattr(image, "default_image", False), image.n_frames):
                image.seek(number)
                image.load()
                yield image.copy()

    delays, transparent = [], False
    for frame in frames():
        delays.append(round(frame.info.get("duration") or NO_DELAY))
        transparent |= frame.has_transparency_data
    fps, remarks = constant_rate(np.cumsum([0, *delays]), Fraction(1, 1000))
    read = lambda: (with_channels(decoded(frame, name), 3) for frame in frames())  # noqa: E731
    return Pictures(len(delays), fps, read, remarks + transparent * (OVER_WHITE,))


def _video(path: Path) -> Pictures:
    """A video. It is decoded once to find what is in it: no header tells reliably how many frames there are, and when."""
    opened = ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
    # Frames are turned as the file says, their pixels are made square, no frame is repeated or left out.
    shown = ["-i", f"file:{path}", "-map", "0:V:0", "-vf", "scale=iw*sar:ih,setsar=1", "-fps_mode", "passthrough"]
    packets, log = _listed(*opened, *shown)
    if (codec := _found(r"Video: (\w+)", log)) in SEES_TRANSPARENCY and re.search(r"(?i)alpha_mode *: 1", log):
        opened += ["-c:v", SEES_TRANSPARENCY[codec]]
        packets, log = _listed(*opened, *shown)
    size = re.search(r"#dimensions 0: (\d+)x(\d+)", packets)
    frames = re.findall(r"^0, *-?\d+, *(-?\d+), *(\d+)", packets, re.MULTILINE)
    if size is None or not frames:
        reason = "there is no video in it" if "Video:" not in log and "Input #0" in log else _problem(log) or "it shows no frame"
        advice = "convert it, or get a new copy"
        raise InputError(f"{path}: neither a picture that Pillow can read nor a video that ffmpeg can read ({reason}); {advice}")
    width, height = map(int, size.groups())
    times = np.array([int(start) for start, _ in frames] + [sum(map(int, frames[-1]))])
    usual, thousands = _found(r"([\d.]+)k? tbr", log), "k tbr" in log
    fps, remarks = constant_rate(times, Fraction(_found(r"#tb 0: (\S+)", packets)), float(usual or 0) * (1000 if thousands else 1))
    transparent = re.search("yuva|rgba|argb|bgra|abgr|gbrap|ya[0-9]", _found(r"Video: [^,]*, (\w+)", log)) is not None
    remarks += transparent * (OVER_WHITE,) + bool(_found(r"Stream #\S+ (Audio):", log)) * ("its sound is left out",)
    if _problem(log):
        remarks += (f"it is damaged; what can be read is used: {amount(len(frames), 'frame')}",)
    command, shape = [*opened, *shown], (height, width, 3 + transparent)
    return Pictures(len(frames), fps, lambda: _decoded(path, command, shape, len(frames)), remarks)


def _decoded(path: Path, command: Sequence[str], shape: tuple[int, int, int], count: int) -> Iterator[np.ndarray]:
    output = ["-f", "rawvideo", "-pix_fmt", "rgba" if shape[-1] == 4 else "rgb24", "pipe:1"]
    with _ffmpeg(*command, *output, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            for number in range(count):
                if len(data := process.stdout.read(math.prod(shape))) < math.prod(shape):
                    raise InputError(f"{path}: ffmpeg ended after {number} of {count} frames; was the file changed?")
                pixels = np.frombuffer(data, np.uint8).reshape(shape).transpose(2, 0, 1).astype(np.float32) / 255.0
                yield pixels[:3] * pixels[3:] + (1.0 - pixels[3:]) if len(pixels) == 4 else np.ascontiguousarray(pixels)
        finally:
            process.kill()  # whoever reads may stop early


def constant_rate(times: np.ndarray, unit: Fraction, usual: float = 0.0) -> tuple[Fraction, tuple[str, ...]]:
    """Frames per second of a film, and a remark if its frames last unequally long: then it keeps the duration, not the times.

    Args:
        times: when its frames begin, and when the last one ends, int64 [N + 1]; they may be rounded [units].
        unit: of these times [s].
        usual: the rate that the file itself gives, to two digits; 0 if it gives none.
    """
    count, begin, end = len(times) - 1, times[:-1] - times[0], times[-1] - times[0]
    # Television has 1000 frames in the time of 1001, and Matroska times to a millisecond, in which that is not seen at once.
    television, plain = Fraction(1000 * round(1.001 * usual), 1001), Fraction(usual).limit_denominator(100)
    mean = Fraction(count - 1, max(int(begin[-1]), 1)) / unit
    for rate in (television if abs(float(television) - usual) < 0.006 else plain, plain, mean):
        if rate > 0:
            frame = 1.0 / float(rate * unit)
            # How long the last frame lasts is often not known: any time up to that of two is.
            if np.abs(begin - frame * np.arange(count)).max() <= 1.01 and abs(end - frame * count) <= 1.01 + frame:
                return rate, ()
    rate = (Fraction(count, max(int(end), 1)) / unit).limit_denominator(1001)
    lasting = np.diff(times) * float(unit)
    shown = f"all {count} are shown at a constant {float(rate):.4g} a second, in which the duration stays"
    return rate, (f"its frames last from {lasting.min():.3g} to {lasting.max():.3g} s; {shown}",) if count > 1 else ()


def held(frames: Iterator[np.ndarray], fps: int) -> Iterator[np.ndarray]:
    """Frames of which the first one stays for half a second more, and the last one for a second."""
    last = next(frames)
    yield from [last] * (fps // 2 + 1)
    for last in frames:
        yield last
    yield from [last] * fps


def there_and_back(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, and all but the last and the first of them in reverse: a film that can be repeated."""
    way = []
    for frame in frames:
        way.append(frame)
        yield frame
    yield from way[-2:0:-1]


def save_video(path: Path, frames: Iterable[np.ndarray], fps: float | Fraction) -> None:
    """Write frames uint8 [H, W, 3] of one size as H.264 that browsers play; odd sizes gain a repeated row or column.

    Raises:
        InputError: if ffmpeg cannot be started, ends badly, as when the disk is full, or writes fewer frames than it was given.
    """
    with whole_file(path) as aside:
        _encode(str(path), f"file:{aside}", frames, fps)


def encoded_video(frames: Iterable[np.ndarray], fps: float | Fraction) -> bytes:
    """The bytes that :func:`save_video` writes. Where the system has files without a name, in memory, nothing of a process that
    is killed stays behind; errors as there.
    """
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory() as folder:
            save_video(Path(folder) / "film.mp4", frames, fps)
            return (Path(folder) / "film.mp4").read_bytes()
    with open(os.memfd_create("film"), "rb") as file:
        _encode("the film", f"file:/dev/fd/{file.fileno()}", frames, fps, pass_fds=(file.fileno(),))
        return file.read()


def _encode(name: str, place: str, frames: Iterable[np.ndarray], fps: float | Fraction, **passed: Any) -> None:
    """Write a video to where ffmpeg finds it by ``place``; ``passed`` is for the process."""
    frames = iter(frames)
    first = next(frames)
    padding = [(0, side % 2) for side in first.shape[:2]] + [(0, 0)]
    (height, width), rate = (side + side % 2 for side in first.shape[:2]), Fraction(fps).limit_denominator(1001)
    given = f"-y -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate} -i pipe:0".split()
    # CRF 18 is visually lossless; faststart lets a browser begin before it has the whole file.
    made = "-c:v libx264 -pix_fmt yuv420p -crf 18 -movflags +faststart -f mp4 -metadata".split()
    count = 0
    with tempfile.TemporaryFile() as log:
        with _ffmpeg(*given, *made, f"comment={mark('film')}", place, stdin=subprocess.PIPE, stderr=log, **passed) as encoder:
            try:
                for frame in chain([first], frames):
                    if encoder.poll() is not None:
                        break
                    count += 1
                    with suppress(BrokenPipeError):  # it has ended: its code tells
                        encoder.stdin.write(np.pad(frame, padding, mode="edge").tobytes())
                with suppress(BrokenPipeError):
                    encoder.stdin.close()
            except BaseException:
                encoder.kill()
                raise
        log.seek(0)
        problem = _problem(log.read().decode(errors="replace"))
        if code := encoder.returncode:
            ended = problem or (signal.strsignal(-code) if code < 0 else f"code {code}")
            raise InputError(f"{name}: the video encoder failed ({ended}); free some space, or write elsewhere with --out")
        written = _listed("-i", place, "-map", "0:V", "-c", "copy", **passed)[0].count("\n0,")
        if written != count:
            raise InputError(f"{name}: the video encoder wrote {written} of {count} frames; write elsewhere with --out")


def _ffmpeg(*arguments: str, **pipes: Any) -> Any:
    """A running ffmpeg, in a group of its own: an interrupt from the keyboard reaches this process alone, which then ends it."""
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-loglevel", "level+info", *arguments]
        return subprocess.Popen(command, **{"stdin": subprocess.DEVNULL} | pipes, start_new_session=True)
    except (OSError, RuntimeError) as error:
        advice = "install imageio-ffmpeg again, or name it in IMAGEIO_FFMPEG_EXE"
        raise InputError(f"ffmpeg cannot be started ({getattr(error, 'strerror', None) or error}); {advice}") from None


def _listed(*arguments: str, **passed: Any) -> tuple[str, str]:
    """The frames that ffmpeg makes of this input, one a line: stream, times [units], bytes and checksum; and what it says."""
    times = ["-enc_time_base", "demux", "-f", "framecrc", "pipe:1"]
    with _ffmpeg(*arguments, *times, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **passed) as process:
        packets, log = process.communicate()
    return packets.decode(), log.decode(errors="replace")


def _found(pattern: str, text: str) -> str:
    """The first group of a pattern in a text; empty if it is not there."""
    found = re.search(pattern, text)
    return found[1] if found else ""


def _problem(log: str) -> str:
    """The first problem in what ffmpeg says, without what it says of itself; empty if there is none."""
    return re.sub(r"\[[^]]*\] *", "", _found(r"(?m)^(.*\[(?:error|fatal)\].*)$", log))
