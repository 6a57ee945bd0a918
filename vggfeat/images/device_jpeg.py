"""Decode JPEGs on a CUDA device and resize them there: `--decode gpu`.

nvJPEG decodes, called by TorchCodec, to which torchvision's decoders are moving, or by torchvision
where TorchCodec is missing. Workers read the files and look at their headers; they hand over the
bytes of what the device decodes, and pixels of all else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import logging
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vggfeat.core.optional import install_command
from vggfeat.core.records import Failure
from vggfeat.errors import DeviceError, VggfeatError
from vggfeat.images.jpeg_header import DEVICE_PIXELS
from vggfeat.images.tensor_resize import fit_tensor, turned
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from vggfeat.core.records import DecodedBatch, EncodedImage
    from vggfeat.core.settings import Settings
    from vggfeat.images.dataset import EncodedImages
    from vggfeat.images.worker_pool import DecodedImage

    DecodeJpegs = Callable[[list[Tensor]], list[Tensor]]

DEVICE_TYPES: tuple[str, ...] = ("cuda",)
"""Devices that `--decode gpu` takes. All but nvJPEG runs on a CPU too, where tests run it."""

_PIXELS_AT_ONCE: Final = 4 * DEVICE_PIXELS
_MOST_DIFFERENCE = 16  # of a test picture's levels from Pillow's: decoders round differently
# NVJPEG_STATUS_ALLOCATOR_FAILURE; and what libraries built for torch's stable interface say, which
# does not pass on that there was no memory.
_OUT_OF_MEMORY = re.compile(r": 5$|out of memory|API call failed")

log = logging.getLogger("vggfeat")


def refuse_without_cuda(devices: Sequence[torch.device]) -> None:
    """Raise `DeviceError` if one of the devices is none that JPEGs are decoded on."""
    others = [str(device) for device in devices if device.type not in DEVICE_TYPES]
    if others:
        raise DeviceError(
            f"decode gpu needs CUDA devices, and this run computes on {', '.join(others)}; use "
            "decode torchvision, whose pixels are nearly the same"
        )


def decode_jpegs(sources: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode baseline JPEGs on a device.

    Args:
        sources: uint8 (n,) in memory, each a file without EXIF, which only some decoders apply.
        device: a CUDA device; or the CPU, where the same libraries decode by libjpeg.

    Returns:
        uint8 (3, H, W) RGB, one for each, on the device; the work of the stream that is current
        there is done.

    Raises:
        RuntimeError: one or more cannot be decoded; nothing is said of the others.
        DeviceError: there is no library that decodes on this device.
    """
    if device.type == "cuda":
        # nvJPEG's engine does not wait for the stream, and torchvision has one of its own: both
        # would write to memory that was freed here and that queued work may still read.
        torch.cuda.current_stream(device).synchronize()
    return jpeg_library(device).decode(sources)


@dataclass(frozen=True, slots=True)
class JpegLibrary:
    """A library that decodes JPEGs on a device, and its function."""

    name: str
    decode: DecodeJpegs


@functools.cache
def jpeg_library(device: torch.device) -> JpegLibrary:
    """Return the first library that decodes two test pictures rightly on a device."""
    wrong = []
    for name, find in (("torchcodec", _torchcodec), ("torchvision", _torchvision)):
        try:
            decode = find(device)
            _check(decode)
        except (ImportError, OSError, RuntimeError) as error:  # as built for another torch or CUDA
            wrong.append(f"{name}: {_first_line(error)}")
        else:
            return JpegLibrary(name, decode)
    raise DeviceError(
        f"decode gpu found no library that decodes JPEGs on {device} ({'; '.join(wrong)}): "
        f"{install_command('gpu')}, or use decode torchvision"
    )


def _torchcodec(device: torch.device) -> DecodeJpegs:
    decode_jpeg = importlib.import_module("torchcodec.decoders").decode_jpeg
    return functools.partial(decode_jpeg, mode="RGB", device=device)


def _torchvision(device: torch.device) -> DecodeJpegs:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(sources: list[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():
            # torchvision 0.29 announces that its decoders will move to TorchCodec.
            warnings.simplefilter("ignore")
            found: list[Tensor] = decode_jpeg(sources, mode=ImageReadMode.RGB, device=device)
        return found

    return decode


def _check(decode: DecodeJpegs) -> None:
    """Raise RuntimeError if a decoder does not give Pillow's picture, in colours and in grey."""
    ramp = np.linspace(0, 255, 96 * 64).reshape(64, 96, 1)
    colours = np.concatenate([ramp, 255 - ramp, ramp[::-1]], axis=2).astype(np.uint8)
    files = [_jpeg(Image.fromarray(colours)), _jpeg(Image.fromarray(colours[..., 0]))]
    for file, found in zip(files, decode([_bytes_of(file) for file in files]), strict=True):
        expected = np.array(Image.open(io.BytesIO(file)).convert("RGB"), dtype=np.int16)
        pixels = found.cpu().permute(1, 2, 0).numpy()
        if pixels.shape != expected.shape or abs(pixels - expected).max() > _MOST_DIFFERENCE:
            raise RuntimeError("it decodes a test picture wrongly")


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _bytes_of(data: Any) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class DeviceJpegs:
    """Decodes what a run's workers left encoded, on the device that computes the batch.

    A JPEG that the device refuses is decoded by Pillow in a worker process, and costs nothing else.

    Args:
        dataset: that the batches are of.
        settings: how images are preprocessed, and how long decoding one may take.
        devices: of the run.
        workers: processes of the run; with 0 Pillow decodes in this one.
        goes_on: if it returns False, nothing more is decoded by Pillow.

    Raises:
        DeviceError: no library decodes on these devices.
    """

    def __init__(
        self,
        dataset: EncodedImages,
        settings: Settings,
        devices: Sequence[torch.device],
        *,
        workers: int,
        goes_on: Callable[[], bool],
    ) -> None:
        self._dataset, self._preprocess = dataset, settings.preprocess()
        self._max_pixels, self._timeout = settings.max_pixels, settings.decode_timeout
        self._workers, self._goes_on = min(1, workers), goes_on
        self._streams = {
            device: torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch has no types here
            for device in devices
            if device.type == "cuda"
        }
        self._told = False
        libraries = {jpeg_library(device).name for device in devices}
        if len(set(devices)) > 1 and "torchvision" in libraries:
            # It has one decoder for the process, which it would make anew for every batch.
            raise DeviceError(
                f"decode gpu on several devices needs torchcodec: {install_command('gpu')}, or use "
                "decode torchvision"
            )

    def batches(
        self,
        loader: Generator[DecodedBatch, None, None],
        next_device: Callable[[], torch.device],
    ) -> Generator[DecodedBatch, None, None]:
        """Yield the batches of a loader with all their images decoded, and end it at the end."""
        with contextlib.closing(loader):
            for batch in loader:
                yield self._on_device(batch, next_device()) if batch.encoded else batch

    def _on_device(self, batch: DecodedBatch, device: torch.device) -> DecodedBatch:
        try:
            return self.decoded(batch, device)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{device} has no memory for the pixels of {len(batch.images)} images: "
                f"{_first_line(error)}"
            ) from error

    def decoded(self, batch: DecodedBatch, device: torch.device) -> DecodedBatch:
        """Return a batch on a device, with its encoded images decoded in their slots."""
        with self._beside(device):
            images = torch.zeros(batch.images.shape, dtype=torch.uint8, device=device)
            for slot in set(batch.slots.tolist()) - set(batch.encoded):
                images[slot].copy_(batch.images[slot], non_blocking=True)
            refused: dict[int, str] = {}
            for group in _groups(batch.encoded):
                refused |= self._decode_into(images, group)
            again = self._by_pillow(batch, refused) if refused else {}
            for slot, image in again.items():
                if image.pixels is not None:
                    images[slot].copy_(torch.from_numpy(image.pixels))
        if images.is_cuda:  # else its memory could be given to the next batch too early
            images.record_stream(torch.cuda.current_stream(device))
        return _with_pixels(batch, images, set(refused), again)

    @contextlib.contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """Run the block in a stream of its own, so that it need not wait for the network."""
        stream = self._streams.get(device)
        if stream is None:
            yield
            return
        of_network = torch.cuda.current_stream(device)
        with torch.cuda.stream(stream):
            yield
        of_network.wait_stream(stream)

    def _decode_into(self, images: Tensor, group: _Group) -> dict[int, str]:
        """Decode, turn, resize and crop some images of a batch into their slots.

        The libraries give all images or none, so halves are tried where one is refused.

        Returns:
            slot → why the device refused it.
        """
        try:
            self._attempt(images, group)
        except VggfeatError:
            raise
        except RuntimeError as error:
            reason = _first_line(error)
            if len(group) == 1:
                _blame_device(images.device, error)
        else:
            return {}
        if len(group) == 1:
            return {group[0][0]: reason}
        half = len(group) // 2
        return self._decode_into(images, group[:half]) | self._decode_into(images, group[half:])

    def _attempt(self, images: Tensor, group: _Group) -> None:
        found = decode_jpegs([torch.from_numpy(one.data) for _, one in group], images.device)
        for (slot, one), image in zip(group, found, strict=True):
            if image.shape != (3, one.height, one.width):
                raise RuntimeError(f"its header says {one.width} x {one.height}")
            fitted = fit_tensor(turned(image, one.turn), self._preprocess, self._max_pixels)
            images[slot] = fitted.permute(1, 2, 0)

    def _by_pillow(self, batch: DecodedBatch, refused: dict[int, str]) -> dict[int, DecodedImage]:
        """Decode the images of some slots by Pillow; of none if the run is not to go on."""
        rows = dict(zip(batch.slots.tolist(), batch.rows.tolist(), strict=True))
        slots = list(refused)
        if not self._told:
            self._told = True
            name, reason = self._dataset.name(rows[slots[0]]), refused[slots[0]]
            log.warning(
                "nvJPEG does not decode %r (%s): such images are decoded by Pillow", name, reason
            )
        decoded = decode_batches(
            np.array([[rows[slot] for slot in slots]]),
            tuple(batch.images.shape[1:]),
            self._dataset.decode_by_pillow,
            workers=self._workers,
            timeout=self._timeout,
            goes_on=self._goes_on,
        )
        return {slots[image.slot]: image for images in decoded for image in images}


_Group: TypeAlias = "list[tuple[int, EncodedImage]]"
"""Images that are decoded together, and their slots."""


def _groups(encoded: Mapping[int, EncodedImage]) -> Iterator[_Group]:
    """Yield images in the order of their slots, as many as there is surely room for at once."""
    group: _Group = []
    pixels = 0
    for slot, image in sorted(encoded.items()):
        pixels += image.height * image.width
        if group and pixels > _PIXELS_AT_ONCE:
            yield group
            group, pixels = [], image.height * image.width
        group.append((slot, image))
    yield group


def _with_pixels(
    batch: DecodedBatch, images: Tensor, refused: set[int], again: Mapping[int, DecodedImage]
) -> DecodedBatch:
    """Return a batch with all pixels, without the slots that Pillow did not decode either."""
    digests, kept, failed = batch.digests.copy(), [], []
    for index, slot in enumerate(batch.slots.tolist()):
        image = again.get(slot)
        if image is not None and image.reason:
            failed.append(Failure(image.row, image.reason, image.digest))
        elif image is not None:
            digests[index] = np.frombuffer(image.digest, np.uint8)  # the file was read again
            kept.append(index)
        elif slot not in refused:
            kept.append(index)
    return dataclasses.replace(
        batch,
        images=images,
        rows=batch.rows[kept],
        slots=batch.slots[kept],
        digests=digests[kept],
        failures=(*batch.failures, *failed),
        encoded={},
    )


def _blame_device(device: torch.device, error: RuntimeError) -> None:
    """Raise DeviceError if it was not the image that made decoding fail."""
    reason = _first_line(error)
    if isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(reason):
        raise DeviceError(f"{device} has no memory to decode one JPEG: {reason}") from error
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as fault:
            raise DeviceError(
                f"device {device} failed: {_first_line(fault)}; rows up to the last checkpoint are "
                "kept, run again to resume"
            ) from fault


def _first_line(error: BaseException) -> str:
    """Return what an error says, without the place in a C++ file that some begin with."""
    lines = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"^\w+, \S+:\d+, ", "", lines[0])
