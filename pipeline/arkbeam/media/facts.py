"""What the header of an image says, and what has to be repaired in the pixels that Pillow decodes."""

from dataclasses import dataclass

from arkbeam.media.kinds import Kind


@dataclass(frozen=True, slots=True)
class Repairs:
    """What Pillow does not do for the pixels of a rare image; by default nothing. See `decoding.pictures`."""

    turn: int = 1
    """The orientation, 1 to 8, of a TIFF that stores it as a byte."""
    invert: bool = False
    """Zero is white, in an image of 16 bits."""
    byte_palette: bool = False
    """The colours of the palette have 8 bits instead of 16."""
    order: tuple[int, ...] = ()
    """The channels in the order red, green, blue, alpha; empty: they are in this order."""
    bits: int = 16
    """Bits of the values of an image of one channel with more than 8 bits: they are scaled to 8."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as its header describes it. `size_px` is width and height before any rotation by EXIF.

    Decoders turn TIFF and HEIC images upright, so these count as upright.
    """

    kind: Kind
    size_px: tuple[int, int]
    cmyk: bool = False
    transparent: bool = False
    """The image has an alpha channel or a transparent colour, even if no pixel uses it."""
    deep: bool = False
    """The image has more than 8 bits a channel."""
    orientation: int = 1
    """From EXIF, 1 to 8: 1 is upright; with 5 to 8, width and height are swapped."""
    animated: bool = False
    undecided: bool = False
    """True if more bytes are needed to see if the image is animated or rotated."""
    bytes_min: int = 0
    """Length of the file in bytes according to its directory of strips or tiles; 0 if it has none."""
    unfit: str = ""
    """Why the pixels can't be decoded right, so that the image can't be changed; empty if they can."""
    repairs: Repairs = Repairs()
    recipe: int = 1
    """2 if versions before this field changed the image to wrong pixels."""
    ranged: bool = False
    """The values have up to 16 or 32 bits in one channel; how many of them are used is only seen in the pixels."""
