"""A little Japanese: sums, sorting, who the model is, and what it cannot answer.

The steps are those of the same problems in English, in digits; only question and answer change.
"""

import random
from typing import Final

from moeray.cluster.tiny.arithmetic import add_thinking, multiply_thinking, subtract_thinking
from moeray.cluster.tiny.draws import any_date, number, user
from moeray.cluster.tiny.lists import sorting_thinking
from moeray.cluster.tiny.problem import Problem, Reply, Thinking
from moeray.cluster.tiny.small_talk import Talk, draw_talk

WHO: Final = "私はMoerayの小さなモデルです。"
UNKNOWN: Final = "わかりません。私は小さなモデルで、計算とリストができます。"
CAN_DO: Final = "計算とリストができます。"
HELLO: Final = "こんにちは。計算かリストの質問をください。"
THANKS: Final = "どういたしまして。"

_ASK: Final = (
    "{}は?",
    "{}はいくつですか?",
    "{}を計算してください。",
    "{}はいくつ?",
    "{}は何ですか?",
)
_PLUS: Final = ("{}+{}", "{}足す{}", "{} + {}", "{}たす{}")
_MINUS: Final = ("{}-{}", "{}引く{}", "{} - {}", "{}ひく{}")
_TIMES: Final = ("{}*{}", "{}かける{}", "{} * {}", "{}×{}")  # noqa: RUF001, as people write it
_ASCENDING: Final = (
    "{}を小さい順に並べてください。",
    "{}を小さい順に並べて。",
    "小さい順に並べてください: {}",
)
_DESCENDING: Final = (
    "{}を大きい順に並べてください。",
    "{}を大きい順に並べて。",
    "大きい順に並べてください: {}",
)
_WHO: Final = (
    "あなたは誰ですか?", "あなたの名前は何ですか?", "お名前は?", "自己紹介してください。",
    "誰ですか?", "名前は?", "あなたは何ですか?", "あなたは人間ですか?", "どのモデルですか?",
)  # fmt: skip
_SKILLS: Final = ("何ができますか?", "あなたは何ができますか?", "できることは何ですか?")
_GREETINGS: Final = (
    "こんにちは",
    "こんにちは。",
    "こんにちは!",
    "おはようございます。",
    "こんばんは。",
)
_THANKS: Final = ("ありがとう", "ありがとう。", "ありがとうございます。")
_WORLD: Final = (
    "{}は何ですか?", "{}とは何ですか?", "{}について教えてください。", "{}はどこですか?",
    "{}の意味は何ですか?", "{}は好きですか?", "{}の作り方を教えてください。",
    "{}を英語で書いてください。", "{}の話をしてください。", "{}の歴史を教えてください。",
    "{}の天気は?", "なぜ{}がありますか?",
    "{}と{}のどちらがいいですか?", "{}の中の{}は何ですか?", "{}で{}を買えますか?",
)  # fmt: skip
_THINGS: Final = (
    "東京", "日本", "中国", "犬", "猫", "水", "山", "川", "空", "海", "花", "本",
    "車", "学校", "会社", "映画", "音楽", "世界", "人", "愛", "心", "時間", "天気", "料理",
    "電話", "家", "国", "歴史", "科学", "経済", "言葉", "太陽", "月", "星", "魚", "鳥",
    "木", "火", "名前", "写真", "大阪", "京都", "英語",
)  # fmt: skip
_OPENINGS: Final = ("", "", "", "すみません。", "こんにちは。", "質問です。")
_ABOUT_ME: Final = Thinking(
    "This asks who I am. I am the embedded model of Moeray.",
    "Check: it is in Japanese and does not ask about the world. "
    "It asks about me, so I say who I am, in Japanese.",
)
_ABOUT_SKILLS: Final = Thinking(
    "This asks what I can do. I name what I was trained on.",
    "Check: it is in Japanese and does not ask about the world. "
    "It asks about my skills, so I name them, in Japanese.",
)
_ABOUT_WORLD: Final = Thinking(
    "This asks about the world. I know nothing of the world.",
    "Check: it is in Japanese, no sum and no list of numbers. "
    "So I say that I do not know, in Japanese.",
)
_GREETING: Final = Thinking(
    "This is a greeting. I greet back.",
    "Check: it is in Japanese and asks for nothing. So I say hello, in Japanese.",
)
_GRATITUDE: Final = Thinking(
    "This says thanks. Nothing is asked.",
    "Check: it is in Japanese and asks for nothing. So I say welcome, in Japanese.",
)
_SMALL_TALK: Final = (
    Talk(0.65, _WORLD, _ABOUT_WORLD, UNKNOWN, opened=True),
    Talk(0.83, _WHO, _ABOUT_ME, WHO, opened=True),
    Talk(0.91, _SKILLS, _ABOUT_SKILLS, CAN_DO, opened=True),
    Talk(0.96, _GREETINGS, _GREETING, HELLO),
    Talk(1.0, _THANKS, _GRATITUDE, THANKS),
)


def draw_japanese(rng: random.Random) -> Problem:
    drawn = rng.random()
    if drawn < 0.55:
        return _calculation(rng)
    return _sorting(rng) if drawn < 0.75 else _small_talk(rng)


def _calculation(rng: random.Random) -> Problem:
    a, b = (number(rng, rng.choice((1, 2, 2, 3, 3, 4))) for _ in range(2))
    kind = rng.random()
    if kind < 0.45:
        forms, sign, thinking, result = _PLUS, "+", add_thinking(a, b), a + b
    elif kind < 0.8:
        a, b = max(a, b), min(a, b)
        forms, sign, thinking, result = _MINUS, "-", subtract_thinking(a, b), a - b
    else:
        b = rng.randrange(2, 10)
        forms, sign, thinking, result = _TIMES, "*", multiply_thinking(a, b), a * b
    text = rng.choice(_ASK).format(rng.choice(forms).format(a, b))
    first, second = (a, b) if sign == "-" else sorted((a, b))
    return _problem(rng, f"{first} {sign} {second}", text, thinking, f"{result}です。")


def _sorting(rng: random.Random) -> Problem:
    numbers = rng.sample(range(10 ** rng.choice((1, 2, 2, 3))), rng.choice((2, 3, 3, 4)))
    descending = rng.random() < 0.4
    ordered = sorted(numbers, reverse=descending)
    text = rng.choice(_DESCENDING if descending else _ASCENDING).format(_joined(numbers))
    thinking = sorting_thinking(numbers, descending=descending)
    key = f"{descending} {_joined(numbers)}"
    return _problem(rng, key, text, thinking, f"{_joined(ordered)}です。")


def _small_talk(rng: random.Random) -> Problem:
    text, asked = draw_talk(
        rng, _SMALL_TALK, _OPENINGS, lambda form: form.format(*rng.sample(_THINGS, 2))
    )
    return _problem(rng, text, text, asked.thinking, asked.final)


def _problem(rng: random.Random, key: str, text: str, thinking: Thinking, final: str) -> Problem:
    # Both question marks are in use.
    shown = text.replace("?", "\uff1f") if rng.random() < 0.5 else text
    return Problem(
        task="japanese",
        key=key,
        messages=user(shown),
        current_date=any_date(rng),
        reply=Reply(thinking=thinking, final=final),
    )


def _joined(numbers: list[int]) -> str:
    return "、".join(map(str, numbers))
