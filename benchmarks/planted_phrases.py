"""Phrases that descriptions with known faults are made of (``planted_texts``), in English and Chinese.

Written after the rules of ``app.judge`` were committed, and read by none of them. ``{s}`` and ``{o}`` are how the
subject and the object are called, ``{n}`` is either.
"""

from __future__ import annotations

PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "left": (
            "The {s} is positioned to the left of the {o}.",
            "To the left of the {o} stands the {s}.",
            "In this picture, the {s} sits on the left side of the {o}, fairly close to it.",
            "The {o} is located to the right of the {s}.",
            "We can see the {s} on the left and the {o} on the right.",
            "The {s}, which catches the light, is just left of the {o}.",
            "There is a {s} to the left of the {o}.",
        ),
        "right": (
            "The {s} appears on the right-hand side of the {o}.",
            "Right of the {o}, there is the {s}.",
            "Looking closely, the {s} is slightly to the right of the {o}.",
            "The {o} lies to the left of the {s}.",
            "The {s} is further to the right than the {o}.",
            "Here the {s} is placed to the right of the {o}, while the light falls from the window.",
        ),
        "above": (
            "The {s} hangs above the {o}.",
            "Directly above the {o} is the {s}.",
            "The {o} is situated below the {s}.",
            "The {s} is higher than the {o} in the frame.",
            "The {s} can be seen above the {o}, with little space between.",
            "Underneath the {s} there is a {o}.",
        ),
        "below": (
            "The {s} is found underneath the {o}.",
            "Below the {o} we see the {s}.",
            "The {s} rests beneath the {o}.",
            "The {o} is above the {s}, and the floor is bright.",
            "The {s} sits lower than the {o}.",
        ),
        "inside": (
            "The {s} is entirely inside the {o}.",
            "The {o} fully encloses the {s}.",
            "The {s} is contained within the {o}.",
            "Inside the {o} lies the {s}.",
        ),
        "overlapping": (
            "The {s} and the {o} overlap in the image.",
            "The {s} partially overlaps the {o}.",
            "Seen from here, the {s} is overlapping with the {o}.",
            "There is some overlap between the {s} and the {o}.",
        ),
        "apart": (
            "The {s} and the {o} do not overlap.",
            "The {s} does not overlap with the {o}.",
            "There is no overlap between the {s} and the {o}.",
        ),
        "upper left": (
            "The {s} is at the upper left of the {o}.",
            "The {s} is above and to the left of the {o}.",
        ),
        "lower right": (
            "The {s} stands to the lower right of the {o}.",
            "The {s} is below and slightly to the right of the {o}.",
        ),
    },
    "zh": {
        "left": (
            "{s}位于{o}的左侧。",
            "{o}的左边是{s}。",
            "在这张照片中，{s}处于{o}的左方，两者距离不远。",
            "{o}在{s}的右手边。",
            "{s}在左边，{o}在右边。",
            "相比{o}，{s}的位置更靠左一些，{s}比{o}更靠左。",
        ),
        "right": (
            "{s}出现在{o}的右边。",
            "在{o}的右侧，可以看到{s}。",
            "从画面上看，{s}稍微偏向右侧，也就是在{o}的右侧。",
            "{o}坐落于{s}左侧。",
            "{s}比{o}更偏右。",
        ),
        "above": (
            "{s}在{o}的正上方。",
            "{o}的上方有{s}。",
            "{o}位于{s}的下面。",
            "{s}悬在{o}上方，显得很醒目。",
            "{s}比{o}的位置更高。",
        ),
        "below": (
            "{s}处在{o}的下方。",
            "{o}下面是{s}。",
            "{o}位于{s}之上。",
            "在{o}的底下放着{s}。",
        ),
        "inside": (
            "{s}完全在{o}的内部。",
            "{o}里面有{s}。",
            "{s}位于{o}之内。",
            "{s}被{o}完全包含。",
        ),
        "overlapping": (
            "{s}与{o}部分重叠。",
            "{s}和{o}在画面中有所重合。",
            "可以看出{s}与{o}之间存在明显的重叠。",
        ),
        "apart": (
            "{s}与{o}没有重叠。",
            "{s}和{o}互不重叠，中间隔着一段空地。",
            "{s}和{o}之间不存在任何重叠。",
        ),
        "upper left": ("{s}位于{o}的左上方。", "{o}的左上角处是{s}。"),
        "lower right": ("{s}在{o}的右下方。", "{o}的右下侧可以看到{s}。"),
    },
}
"""What is said of places: relation of the subject to the object -> sentences."""

NEUTRAL: dict[str, tuple[str, ...]] = {
    "en": (
        "The colours of the scene are muted and the light is soft.",
        "A few people walk past in the background.",
        "Its surface looks smooth and well kept.",
        "The distance between the two is small, so that they seem to belong together.",
        "It was probably taken on a summer afternoon.",
        "Some trees on the left of the image give shade.",
        "The {s} seems to be used together with the {o}.",
        "One cannot miss how the {s} draws attention, next to the {o}.",
    ),
    "zh": (
        "整个场景色调柔和，光线自然。",
        "背景里有几个行人走过。",
        "它的表面看起来光滑而整洁。",
        "两者距离很近，显得十分协调。",
        "这张照片大概拍摄于夏日午后。",
        "画面左侧的树木投下了阴影。",
        "{s}似乎正与{o}一起使用。",
        "{s}紧挨着{o}，十分引人注目。",
    ),
}
"""Sentences that are true of anything and say nothing of places."""

ONE_NAMED: dict[str, tuple[str, ...]] = {
    "en": ("The {n} is the most striking thing here.", "What one notices first is the {n}, bright and clean."),
    "zh": ("{n}是这里最显眼的东西。", "首先引人注意的是{n}，明亮而干净。"),
}
NONE_NAMED: dict[str, tuple[str, ...]] = {
    "en": ("Everything is very close together here.", "One thing touches the next, and nothing stands alone."),
    "zh": ("这里的一切都靠得很近。", "一件东西挨着另一件，没有什么是孤立的。"),
}

PROMPTED: dict[str, tuple[str, ...]] = {
    "en": (
        "According to the bounding boxes, the {s} and the {o} are close.",
        "You asked about the {s} and the {o}, so these come first.",
        "As requested, this is about the {s} and the {o}.",
        "The prompt says that the {s} is roughly near the {o}.",
        "Sure! The {s} goes well with the {o}.",
        "Here is a detailed description of the {s} and the {o}:",
        "Given the coordinates (120, 340), the {s} is near the {o}.",
        "Your description of the {s} and the {o} is accurate.",
        "Please let me know whether more on the {s} or the {o} is wanted.",
    ),
    "zh": (
        "根据您提供的信息，{s}和{o}很接近。",
        "从给出的坐标来看，{s}离{o}不远。",
        "题目中提到的{s}与{o}都很清楚。",
        "好的，下面介绍{s}和{o}。",
        "以下是{s}与{o}的详细关系：",
        "按照边界框，{s}与{o}相邻。",
        "你的描述说{s}靠近{o}。",
        "希望这些关于{s}和{o}的说明对您有帮助。",
    ),
}
REFUSED: dict[str, tuple[str, ...]] = {
    "en": (
        "I'm sorry, but I can't describe the {s} and the {o}.",
        "I am unable to say how the {s} relates to the {o}.",
        "As an AI, I have no view of the {s} or the {o}.",
        "It is impossible to tell what the {s} does with the {o}.",
        "I cannot see any {s} or {o} here.",
        "Unfortunately I do not have access to the {s} and the {o}.",
        "The relation of the {s} and the {o} cannot be determined.",
    ),
    "zh": (
        "抱歉，我不能描述{s}和{o}。",
        "作为一个AI，我看不到{s}或{o}。",
        "很遗憾，无法给出{s}与{o}的关系。",
        "我无法判断{s}与{o}的关系。",
        "对不起，这里没有看到图片中的{s}和{o}。",
        "难以提供{s}和{o}的更多细节。",
    ),
}
FOREIGN = (
    "Le {s} se trouve à côté du {o}, et les deux sont dans la même pièce avec une belle lumière.",
    "Der {s} steht neben dem {o} und beide sind auf dem Bild gut zu sehen.",
    "El {s} está junto al {o}, y los dos se ven muy bien en la imagen con una luz suave.",
    "{s} находится рядом с {o}, и оба предмета хорошо видны на снимке.",
    "{s}は{o}のとなりにあり、とてもきれいに見えます。",
)
"""In a language that no prompt is in."""
