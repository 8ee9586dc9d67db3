"""Make the demo's data: the catalogue of an invented museum shop, in English and Chinese, with pictures of its tiles.

    python scripts/make_demo.py            writes configs/demo/manifest.jsonl, more.csv and images/

Nothing is random: with the pinned Pillow every run writes the same bytes. The script does not make the only video,
`videos/lantern.mp4` (H.264, three seconds: a lantern moves across a night sky).
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "demo"
COLUMNS = ("id", "text", "image", "video", "title", "lang", "price", "tags")
DUPLICATES = 20

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A product of the shop, in English and Chinese; the price is in yuan."""

    slug: str
    en: str
    zh: str
    price: float
    en_more: str
    zh_more: str


@dataclass(frozen=True, slots=True)
class Shelf:
    """Products that come in the same three variants. A variant is (slug, English, Chinese)."""

    tag: str
    variants: tuple[tuple[str, str, str], ...]
    kinds: tuple[Kind, ...]


# fmt: off
SHELVES = (
    Shelf(
        "ceramics",
        (("celadon", "celadon", "青瓷"), ("blue-white", "blue-and-white", "青花"), ("tenmoku", "black-glazed", "黑釉")),
        (
            Kind("bowl", "tea bowl", "茶碗", 88, "thrown by hand, holds a cup of hot tea", "手工拉坯，正好盛一杯热茶"),
            Kind("teapot", "teapot", "茶壶", 236, "with a bamboo handle, pours tea without a drip", "竹编提梁，倒茶利落不滴"),
            Kind("vase", "vase", "花瓶", 198, "made for a single branch of plum blossom", "只插一枝梅花就很好看"),
            Kind("plate", "dinner plate", "餐盘", 65, "fired twice and safe in the oven", "两次烧成，可进烤箱"),
        ),
    ),
    Shelf(
        "textiles",
        (("silk", "silk", "真丝"), ("wool", "wool", "羊毛"), ("linen", "linen", "亚麻")),
        (
            Kind("scarf", "scarf", "围巾", 168, "long enough to wrap twice round the neck", "够长，可以绕脖子两圈"),
            Kind("cushion", "cushion cover", "靠垫套", 96, "with a cloud pattern woven in", "织有祥云纹样"),
            Kind("runner", "table runner", "桌旗", 128, "with a hem stitched by hand", "手工缝边，铺在餐桌上"),
            Kind("bag", "shoulder bag", "单肩包", 145, "with a pocket inside for a phone", "内有放手机的小袋"),
        ),
    ),
    Shelf(
        "books",
        (
            ("pocket", "pocket", "口袋版"),
            ("illustrated", "illustrated", "插图版"),
            ("children", "children's", "儿童版"),
        ),
        (
            Kind("bridges", "history of stone bridges", "石桥史", 58, "a book of arches and rivers", "一本讲拱桥与河流的书"),
            Kind("birds", "guide to garden birds", "庭院鸟类图鉴", 72, "a book to tell birds by their song", "一本听声辨鸟的书"),
            Kind("noodles", "cookbook of noodles", "面食菜谱", 49, "a book of forty soups and sauces", "一本教四十种汤面与浇头的书"),
            Kind("stars", "atlas of the stars", "星图集", 85, "a book of the night sky, season by season", "一本按季节看夜空的书"),
        ),
    ),
    Shelf(
        "prints",
        (
            ("woodblock", "woodblock", "木版"),
            ("screen", "screen-printed", "丝网"),
            ("letterpress", "letterpress", "活字"),
        ),
        (
            Kind("river", "poster of a mountain river", "山水海报", 78, "mist over the water at dawn", "清晨江上有雾"),
            Kind("streets", "postcards of old streets", "老街明信片", 25, "eight cards with envelopes", "一套八张，附信封"),
            Kind("festivals", "calendar of festivals", "节庆月历", 42, "twelve sheets, one for each month", "十二张，每月一张"),
            Kind("silk-road", "map of the Silk Road", "丝绸之路地图", 66, "with caravan towns and deserts", "标有驼队城镇与沙漠"),
        ),
    ),
    Shelf(
        "toys",
        (("wooden", "wooden", "木制"), ("tin", "tin", "铁皮"), ("felt", "felt", "毛毡")),
        (
            Kind("tiger", "toy tiger", "玩具老虎", 45, "a striped friend for small children", "带条纹，适合小朋友"),
            Kind("train", "toy train", "玩具火车", 79, "an engine and three carriages for children", "一个车头三节车厢，小朋友喜欢"),
            Kind("rabbit", "toy rabbit", "玩具兔子", 38, "with long ears, a gift for the Moon Festival", "长耳朵，中秋节的礼物"),
            Kind("robot", "toy robot", "玩具机器人", 92, "walks when a child winds it up", "上发条就会走路"),
        ),
    ),
    Shelf(
        "jewellery",
        (("silver", "silver", "银"), ("jade", "jade", "玉"), ("amber", "amber", "琥珀")),
        (
            Kind("earrings", "earrings", "耳环", 228, "small drops, light to wear all day", "小巧水滴形，戴一天也不累"),
            Kind("ring", "ring", "戒指", 268, "plain and polished, in four sizes", "素面抛光，四个尺寸"),
            Kind("brooch", "brooch", "胸针", 188, "in the shape of a swallow", "燕子形状"),
            Kind("pendant", "pendant", "吊坠", 315, "on a thin chain, in a gift box", "配细链，装在礼盒里"),
        ),
    ),
    Shelf(
        "stationery",
        (("red", "red", "朱红"), ("indigo", "indigo", "靛蓝"), ("pine", "pine green", "松绿")),
        (
            Kind("notebook", "notebook", "笔记本", 36, "sewn pages that lie flat for writing", "锁线装订，摊平好写字"),
            Kind("pen", "fountain pen", "钢笔", 156, "a fine nib for everyday writing", "细笔尖，日常写字用"),
            Kind("ink", "bottle of ink", "墨水", 48, "dries fast and does not feather", "干得快，不洇纸"),
            Kind("seal", "seal box", "印泥盒", 69, "with ink paste for a name seal", "内装印泥，配姓名章"),
        ),
    ),
    Shelf(
        "fossils",
        (("small", "small", "小号"), ("large", "large", "大号"), ("polished", "polished", "抛光")),
        (
            Kind("ammonite", "ammonite fossil", "菊石化石", 118, "a spiral shell from a Jurassic sea", "侏罗纪海里的螺旋壳"),
            Kind("trilobite", "trilobite fossil", "三叶虫化石", 136, "a sea creature older than fish", "比鱼还早的海洋生物"),
            Kind("amethyst", "amethyst crystal", "紫水晶", 99, "a violet mineral on its rock", "长在岩石上的紫色矿物"),
            Kind("meteorite", "meteorite slice", "陨石切片", 420, "iron that fell from space", "从太空落下的铁"),
        ),
    ),
    Shelf(
        "instruments",
        (("student", "student's", "初学"), ("travel", "travel", "便携"), ("concert", "concert", "演奏级")),
        (
            Kind("flute", "bamboo flute", "竹笛", 85, "a clear sound, tuned to D", "音色清亮，D 调"),
            Kind("erhu", "erhu", "二胡", 680, "a two-stringed fiddle with its bow", "两根弦，附琴弓"),
            Kind("kalimba", "thumb piano", "拇指琴", 126, "seventeen keys and a soft sound", "十七音，音色柔和"),
            Kind("drum", "hand drum", "手鼓", 210, "a goatskin head and a deep sound", "羊皮鼓面，声音低沉"),
        ),
    ),
    Shelf(
        "lights",
        (("brass", "brass", "黄铜"), ("glass", "glass", "玻璃"), ("bamboo", "bamboo", "竹编")),
        (
            Kind("lamp", "table lamp", "台灯", 258, "a warm light to read by", "灯光暖黄，适合看书"),
            Kind("lantern", "lantern", "灯笼", 108, "a warm light to hang by the door", "灯光暖黄，挂在门口"),
            Kind("candle", "candlestick", "烛台", 76, "for a single long candle", "插一支长蜡烛"),
            Kind("clock", "wall clock", "挂钟", 186, "with quiet hands and Chinese numerals", "指针无声，中文数字"),
        ),
    ),
)
# fmt: on

COLOURS = {
    "red": ("红", (200, 40, 44)),
    "yellow": ("黄", (240, 196, 48)),
    "green": ("绿", (44, 140, 80)),
    "blue": ("蓝", (40, 84, 176)),
    "purple": ("紫", (120, 60, 150)),
    "white": ("白", (246, 244, 236)),
    "black": ("黑", (28, 28, 32)),
    "pink": ("粉", (244, 160, 180)),
}
PAIRS = (("red", "white"), ("blue", "yellow"), ("green", "black"), ("purple", "pink"))

Paint = Callable[[ImageDraw.ImageDraw, int, int, tuple[int, int, int]], None]


def paint_stripes(draw: ImageDraw.ImageDraw, w: int, h: int, ink: tuple[int, int, int]) -> None:
    """Draw horizontal stripes."""
    for top in range(0, h, max(2, h // 4)):
        draw.rectangle((0, top, w, top + h // 8 - 1), fill=ink)


def paint_columns(draw: ImageDraw.ImageDraw, w: int, h: int, ink: tuple[int, int, int]) -> None:
    """Draw vertical stripes."""
    for left in range(0, w, max(2, w // 4)):
        draw.rectangle((left, 0, left + w // 8 - 1, h), fill=ink)


def paint_checks(draw: ImageDraw.ImageDraw, w: int, h: int, ink: tuple[int, int, int]) -> None:
    """Draw a chess board of 4 x 4 cells."""
    for cell in range(16):
        x, y = cell % 4, cell // 4
        if (x + y) % 2:
            draw.rectangle((x * w // 4, y * h // 4, (x + 1) * w // 4 - 1, (y + 1) * h // 4 - 1), fill=ink)


def paint_dots(draw: ImageDraw.ImageDraw, w: int, h: int, ink: tuple[int, int, int]) -> None:
    """Draw nine dots."""
    for cell in range(9):
        x, y = (2 * (cell % 3) + 1) * w // 6, (2 * (cell // 3) + 1) * h // 6
        draw.ellipse((x - w // 12, y - h // 12, x + w // 12, y + h // 12), fill=ink)


LAYOUTS: dict[str, tuple[str, Paint]] = {
    "stripes": ("横条纹", paint_stripes),
    "columns": ("竖条纹", paint_columns),
    "checks": ("棋盘格", paint_checks),
    "dots": ("圆点", paint_dots),
    "circle": ("圆形", lambda d, w, h, ink: d.ellipse((w // 5, h // 5, w * 4 // 5, h * 4 // 5), fill=ink)),
    "ring": (
        "圆环",
        lambda d, w, h, ink: d.ellipse((w // 6, h // 6, w * 5 // 6, h * 5 // 6), outline=ink, width=w // 9),
    ),
    "triangle": (
        "三角形",
        lambda d, w, h, ink: d.polygon(((w // 2, h // 6), (w // 6, h * 5 // 6), (w * 5 // 6, h * 5 // 6)), fill=ink),
    ),
    "diagonal": ("对角", lambda d, w, h, ink: d.polygon(((0, 0), (w, 0), (0, h)), fill=ink)),
    "frame": ("边框", lambda d, w, h, ink: d.rectangle((0, 0, w - 1, h - 1), outline=ink, width=w // 6)),
    "horizon": ("下半", lambda d, w, h, ink: d.rectangle((0, h // 2, w, h), fill=ink)),
    "corner": ("一角", lambda d, w, h, ink: d.rectangle((w // 2, 0, w, h // 2 - 1), fill=ink)),
}
SIZES = ((32, 32), (64, 48), (64, 64), (96, 64), (128, 96), (128, 128))
FORMATS = ("png", "jpg", "webp")


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of the shop: a pattern in one colour on a ground of another colour, and its picture."""

    number: int
    layout: str
    ink: str
    ground: str

    @property
    def image(self) -> str:
        """Path of the picture, relative to the manifest's folder."""
        return f"images/{self.layout}-{self.ink}-{self.ground}.{FORMATS[self.number % len(FORMATS)]}"

    @property
    def en(self) -> str:
        """Name in English."""
        return f"{self.ink} {self.layout} on {self.ground}"

    @property
    def zh(self) -> str:
        """Name in Chinese."""
        return f"{COLOURS[self.ground][0]}底{COLOURS[self.ink][0]}色{LAYOUTS[self.layout][0]}"


TILES = tuple(
    Tile(number, layout, *pair)
    for number, (pair, layout) in enumerate((pair, layout) for pair in PAIRS for layout in LAYOUTS)
)


def tile_bytes(tile: Tile) -> bytes:
    """Return the bytes of the picture's file."""
    w, h = SIZES[tile.number % len(SIZES)]
    picture = Image.new("RGB", (w, h), COLOURS[tile.ground][1])
    LAYOUTS[tile.layout][1](ImageDraw.Draw(picture), w, h, COLOURS[tile.ink][1])
    file = io.BytesIO()
    match Path(tile.image).suffix:
        case ".png":
            picture.save(file, "PNG", optimize=True)
        case ".jpg":
            picture.save(file, "JPEG", quality=90, subsampling=0)
        case _:
            picture.save(file, "WEBP", lossless=True)
    return file.getvalue()


def text_rows() -> Iterator[Row]:
    """Yield every product in every variant, once in English and once in Chinese."""
    for shelf in SHELVES:
        for kind in shelf.kinds:
            for step, (slug, en, zh) in enumerate(shelf.variants):
                shared = {"price": round(kind.price * (1 + 0.15 * step), 2), "tags": [shelf.tag, kind.slug]}
                title = f"{en} {kind.en}"
                yield {
                    "id": f"{kind.slug}-{slug}-en",
                    "text": f"{title[0].upper()}{title[1:]}, {kind.en_more}.",
                    "title": title,
                    "lang": "en",
                    **shared,
                }
                yield {
                    "id": f"{kind.slug}-{slug}-zh",
                    "text": f"{zh}{kind.zh}，{kind.zh_more}。",
                    "title": f"{zh}{kind.zh}",
                    "lang": "zh",
                    **shared,
                }


def duplicate_rows(texts: list[Row]) -> Iterator[Row]:
    """Yield products that are also on sale: the same text with another id, at half the price."""
    for row in texts[:: len(texts) // DUPLICATES][:DUPLICATES]:
        yield row | {"id": f"{row['id']}-sale", "price": round(row["price"] / 2, 2), "tags": [*row["tags"], "sale"]}


def tile_rows() -> Iterator[Row]:
    """Yield every tile with its picture alone, and every second tile also with picture and text."""
    for tile in TILES:
        shared = {"image": tile.image, "price": 18.5 + tile.number % 4, "tags": ["tiles", tile.layout]}
        name = Path(tile.image).stem
        yield {"id": f"tile-{name}", "title": f"tile, {tile.en}", "lang": "en", **shared}
        if tile.number % 4 == 0:
            text = f"Cement floor tile: {tile.en}."
            yield {"id": f"tile-{name}-en", "text": text, "title": f"tile, {tile.en}", "lang": "en", **shared}
        if tile.number % 4 == 2:
            text = f"水泥花砖：{tile.zh}。"
            yield {"id": f"tile-{name}-zh", "text": text, "title": f"花砖，{tile.zh}", "lang": "zh", **shared}


def video_rows() -> Iterator[Row]:
    """Yield the video, once alone and once with a text."""
    shared = {"video": "videos/lantern.mp4", "lang": "en", "price": 0.0, "tags": ["film"]}
    yield {"id": "film-lantern", "title": "lantern film", **shared}
    yield {"id": "film-lantern-en", "title": "lantern film", "text": "A red lantern floats across the night.", **shared}


def bad_lines() -> Iterator[str]:
    """Yield five rows that become failure rows, each for a different reason."""
    shared = {"lang": "en", "price": 1.0, "tags": ["bad"]}
    yield '{"id": "bad-json", "text": "This line was cut off in the mid'
    yield to_line({"id": "bad-empty", "title": "no text, no image, no video", **shared})
    yield to_line(
        {"id": "bad-missing", "image": "images/not-there.png", "title": "an image that is not there", **shared}
    )
    yield to_line({"id": "bad-picture", "image": "images/no-picture.png", "title": "an image that is none", **shared})
    yield to_line(
        {"id": "bad-type", "text": {"en": "a text that is an object"}, "title": "a text of the wrong type", **shared}
    )


def to_line(row: Row) -> str:
    """Return a row as one line of JSON with the columns in order, without columns that have no value."""
    return json.dumps({name: row[name] for name in COLUMNS if name in row}, ensure_ascii=False)


def manifest_bytes() -> bytes:
    """Return the manifest. Its lines are sorted by their hash, so that bad rows and duplicates are spread over it."""
    texts = list(text_rows())
    lines = [to_line(row) for row in (*texts, *duplicate_rows(texts), *tile_rows(), *video_rows())]
    lines += bad_lines()
    lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
    return "".join(f"{line}\n" for line in lines).encode()


VISITS = (
    ("Opening hours", "The museum is open from nine to five and closed on Mondays.", "开放时间", "博物馆九点开门，五点关门，周一闭馆。"),
    ("Tickets", "Tickets are free for children and students; adults pay at the door.", "门票", "儿童和学生免票，成人在门口购票。"),
    ("Guided tours", "Guided tours in English start at eleven in the main hall.", "导览", "中文导览每天十点在大厅开始。"),
    ("Café", "The café on the roof serves noodles, tea and cake.", "咖啡馆", "屋顶咖啡馆供应面条、茶和蛋糕。"),
    ("Cloakroom", "Leave large bags and umbrellas in the cloakroom.", "寄存处", "大件行李和雨伞请放在寄存处。"),
    ("Photography", "Photographs are welcome without a flash.", "拍照", "欢迎拍照，请关闭闪光灯。"),
    ("Getting here", "Take bus 12 or the metro to Drum Tower station.", "交通", "乘十二路公交或地铁到鼓楼站。"),
    ("Wheelchairs", "Wheelchairs can be borrowed at the entrance; every floor has a lift.", "轮椅", "入口处可借轮椅，每层都有电梯。"),
    ("Workshops", "On Saturdays children paint tiles in the workshop.", "工作坊", "周六孩子们在工作坊画花砖。"),
    ("Returns", "The shop takes goods back within thirty days.", "退货", "商店三十天内可以退货。"),
)  # fmt: skip


def more_bytes() -> bytes:
    """Return a second, small manifest as CSV: visitors' questions. No prices and tags, because CSV has only text."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("id", "text", "image", "title", "lang"))
    for number, (en_title, en, zh_title, zh) in enumerate(VISITS):
        writer.writerow((f"visit-{number:02}-en", en, "", en_title, "en"))
        writer.writerow((f"visit-{number:02}-zh", zh, "", zh_title, "zh"))
    return file.getvalue().encode()


def demo_files() -> dict[str, bytes]:
    """Return the content of every file by its path below the demo's folder."""
    files = {tile.image: tile_bytes(tile) for tile in TILES}
    files["images/no-picture.png"] = b"This file says it is a picture. It is not.\n"
    files["manifest.jsonl"] = manifest_bytes()
    files["more.csv"] = more_bytes()
    return files


def main(folder: Path = FOLDER) -> None:
    """Write all files and replace existing ones."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files = demo_files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes in {folder}")


if __name__ == "__main__":
    main()
